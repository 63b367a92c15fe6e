"""Whose words reach clients: those of our own refusals. What a library or the system says of a failure stays here."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from livery import logs
from livery.api.errors import TABLE, UNEXPECTED, describe
from livery.engine import base as engine
from livery_adapters import registry
from test_architecture import SOURCES

# Words for whoever starts a server or runs a command, at the console.
CONSOLE = (
    *("livery.bench", "livery.cli", "livery.commands", "livery.data_folder", "livery.evaluation", "livery.listening"),
    *(
        "livery.models",
        "livery.ready",
        "livery.settings",
        "livery.engine.compiler",
        "livery.engine.kernels",
        "livery.engine.model",
    ),
    "livery.engine.runner",
    "livery.running",
    *("livery.engine.structure", "livery.engine.weightless", "livery.training"),
)
# Where else another's words are used, and why they may be.
NAMED = {
    ("livery.api.uploads", "feed"): "what is wrong with the multipart body that the client sent, by its parser",
    ("livery.chat_template", "render"): "what a template says of messages, which were sent",
    ("livery.engine.client", "_launch"): "why a model is refused on one of several devices: the console's",
    ("livery.engine.client", "_receive"): "why an engine is lost: the log's",
    (
        "livery.engine.constraint",
        "__init__",
    ): "why nothing can be held to a grammar: of the base's tokenizer file",
    ("livery.engine.message_loop", "run"): "why a model can't be served: the console's",
    ("livery.engine.supervisor", "_mind"): "why an engine is started anew: the log's",
    ("livery.engine.supervisor", "_started_anew"): "why an engine is started anew: the log's",
    ("livery.engine.vllm", "_build"): "why vLLM won't be started: the console's",
    ("livery.engine.vllm_requests", "generate"): "what is wrong with a request's parameters, which were sent",
    ("livery.engine.vllm_process", "call"): "what vLLM says of what it was asked to do: the log's",
    ("livery.engine.vllm_sampling", "params"): "what is wrong with a request's parameters, which were sent",
    ("livery.foreign_json", "parse_line"): "what is wrong with a line of one's own data",
    ("livery.grammars", "__init__"): "what is wrong with a grammar, which was sent",
    ("livery.otlp", "_client"): "what is wrong with the environment's proxies: the console's",
    ("livery.otlp", "_refused"): "what a collector says: the log's",
    ("livery.otlp", "_send_all"): "why a trace isn't sent: the log's",
    ("livery.otlp", "address_of"): "what is wrong with the operator's own address: the console's",
    ("livery.template_worker", "_render"): "what is wrong with a template, by its owner's own line of it",
    ("livery.scale.plan.accelerators", "_from_file"): "what is wrong with a file of one's own: the console's",
    ("livery.scale.plan.shapes", "_from_config"): "what is wrong with a file of one's own: the console's",
    ("livery.workers.pool", "_live"): "why a worker has no process: the log's",
    ("livery_adapters.profile", "_yaml"): "what is wrong with a profile, which was sent",
    ("livery_adapters.profile", "read_profile"): "what is wrong with a profile, which was sent",
    ("livery_adapters.profile", "recorded_profile"): "what is wrong with a profile, which was sent",
    ("livery_adapters.sources", "_look"): "what of the operator's folder can't be read: the log's",
    ("livery_adapters.strict_json", "_parse"): "what is wrong with JSON, which was sent",
    ("livery_adapters.row_file", "stage"): "why a backup can't be restored: the console's",
}
TEXT = ("args", "detail", "filename", "message", "msg", "orig", "reason")  # attributes that are an exception's words


def classes() -> dict[str, set[str]]:
    """Our classes by name, and the names of their bases."""
    return {
        node.name: {base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases}
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def withheld() -> set[str]:
    """Ours whose words may tell of this machine, and what they are caught as together with others."""
    found = {kind.__name__ for kind, failure in TABLE.items() if failure.message is not None}
    bases = classes()
    waiting = list(found)
    while waiting:
        new = bases.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


FIT = set(classes()) - withheld()


def caught(handler: ast.ExceptHandler) -> set[str]:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {getattr(kind, "id", None) or getattr(kind, "attr", None) or "anything" for kind in kinds}


def words(handler: ast.ExceptHandler) -> Iterator[ast.AST]:
    """Where text is made of what was caught, but for the log."""
    waiting: list[ast.AST] = [*handler.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log."):
            continue
        if _makes_text(node, handler):
            yield node
        waiting += ast.iter_child_nodes(node)


def _makes_text(node: ast.AST, handler: ast.ExceptHandler) -> bool:
    match node:
        case ast.Attribute():
            return is_caught(node.value, handler) and node.attr in TEXT
        case ast.FormattedValue():
            return holds(node.value, handler)
        case ast.BinOp(op=ast.Mod()):
            return holds(node.right, handler)
        case ast.Call():
            return ast.unparse(node.func) in ("str", "repr", "format") and any(holds(one, handler) for one in node.args)
    return False


def is_caught(node: ast.AST, handler: ast.ExceptHandler) -> bool:
    return isinstance(node, ast.Name) and node.id == handler.name


def holds(node: ast.AST, handler: ast.ExceptHandler) -> bool:
    """Is the exception itself in it, and not only its type or a plain fact of it, such as `strerror`?"""
    if isinstance(node, ast.Attribute | ast.Call) and ast.unparse(node).startswith(("type(", f"{handler.name}.")):
        return isinstance(node, ast.Attribute) and node.attr in TEXT
    return is_caught(node, handler) or any(holds(inner, handler) for inner in ast.iter_child_nodes(node))


def test_the_words_of_others_are_used_only_where_that_is_named() -> None:
    found = {}
    for module, tree in SOURCES.items():
        if module.startswith((*CONSOLE, "livery_loadtest")):
            continue
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler) and node.name and not caught(node) <= FIT and any(words(node)):
                    found[module, function.name] = sorted(caught(node))
    assert found.keys() == NAMED.keys(), (
        f"not named: {found.keys() - NAMED.keys()}; gone: {NAMED.keys() - found.keys()}"
    )


def test_what_is_looked_for_is_found() -> None:
    def handler(body: str) -> ast.ExceptHandler:
        tree = ast.parse(f"try: pass\nexcept OSError as error:\n    {body}")
        return next(node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))

    shown = (
        "str(error)",
        "f'{error!r}'",
        "f'{short(error)}'",
        "'%s' % error",
        "x = error.args[0]",
        "g(error.filename)",
    )
    assert all(any(words(handler(body))) for body in shown)
    kept = ("log.error('%s', error)", "raise X from error", "f'{error.strerror}'", "f'{type(error).__name__}'")
    assert not any(any(words(handler(body))) for body in kept)
    assert {"OSError", "EngineError", "RegistryError", "RegistryUnavailable"}.isdisjoint(FIT)
    assert {"AdapterRefused", "EngineRestarting", "InvalidParameter"} <= FIT


@pytest.mark.parametrize(
    "kind",
    [*(kind for kind, failure in TABLE.items() if failure.message is not None), OSError, ValueError, KeyError],
    ids=lambda kind: kind.__name__,
)
def test_what_is_withheld_is_a_sentence_with_the_requests_id(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "/home/somebody/livery.db of db.internal")
    failure = TABLE.get(kind, UNEXPECTED)
    said = logs.request_id.set("req_of_this")
    try:
        told = describe(error)
    finally:
        logs.request_id.reset(said)
    assert told.body["error"]["message"] == f"{failure.message} (request id req_of_this)"
    assert told.status in (500, 503)
    assert "req_of_this" in caplog.text and "/home/somebody" in caplog.text, "the log has the rest"
    assert issubclass(kind, engine.EngineError | registry.RegistryError) or failure is UNEXPECTED
