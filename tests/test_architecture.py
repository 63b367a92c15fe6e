"""The rules of DESIGN.md that a reader relies on, read off the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from slowest import SLOWEST

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "livery": ROOT / "server" / "livery",
    "livery_adapters": ROOT / "adapters" / "livery_adapters",
    "livery_loadtest": ROOT / "loadtest" / "livery_loadtest",
}

DECIDED_BY = (
    *("adjust", "ahead", "base", "codes", "constraint", "deadlines", "drafting", "fairness", "figures"),
    *("held_back", "lengths", "outcomes", "plan", "roster"),
    *("scheduler", "sequence", "speculation", "step_size", "tally", "turns"),
    *("blocks", "prefix", "prefix_keys", "claims", "versions", "vllm_queue"),
    *("eviction", "pages", "reads", "residency"),
)
DECIDING = {f"livery.engine.{name}" for name in DECIDED_BY}
COMPUTING = {"livery.engine.runner", "livery.engine.model", "livery.engine.attention", "livery.engine.sampler"}

# What each part of the server may import of the three packages. Every module belongs to exactly one part (the longest
# prefix that fits), so a new one has to be placed here before it can be used.
SEAM = {"livery.engine.base", "livery.engine.codes", "livery.engine.figures"}
FACTS = {"livery.refusals", "livery.chat_template", "livery.jobs"}  # plain data, seen from everywhere above
TEXT = {"livery.text", "livery.chat_template", "livery.tokenizer_files"}
ALLOWED: dict[str, set[str]] = {
    "livery.models": {"livery_adapters.model_files"},
    "livery.gguf_forms": set(),
    "livery.grammars": SEAM,
    "livery.grammar_process": SEAM | {"livery.grammars", "livery_adapters"},
    "livery.grammar_check": SEAM | FACTS | {"livery.grammars", "livery.grammar_process", "livery.tenancy"},
    "livery.refusals": {"livery.engine.codes"},
    "livery.chat_template": set(),
    "livery.foreign_json": set(),
    "livery.settings": {"livery.tenancy", "livery_adapters.refusal"},
    "livery.variables": {"livery.settings", "livery_adapters.likeness"},
    "livery.ready": set(),
    "livery.listening": {"livery.settings"},
    "livery.tenancy": SEAM | {"livery.beside", "livery.refusals", "livery.tenancy", "livery.vitals", "livery_adapters"},
    "livery.tokenizer_files": {"livery.models"},
    "livery.template_worker": FACTS,
    "livery.foreign_templates": FACTS | {"livery.template_worker"},
    "livery.token_text": set(),
    "livery.text": TEXT | FACTS | {"livery.foreign_templates", "livery.token_text", "livery_adapters"},
    "livery.adapter_text": TEXT
    | FACTS
    | {"livery.beside", "livery.foreign_templates", "livery.tools", "livery_adapters"},
    "livery.stops": set(),
    "livery.vitals": SEAM | {"livery.refusals"},
    "livery.beside": {"livery.host", "livery_adapters.shared_threads"},
    "livery.host": set(),
    "livery.activity": set(),
    "livery.logs": set(),
    "livery.beginning": set(),
    "livery.locks": set(),
    "livery.scratch": {"livery.locks"},
    "livery.spans": SEAM,
    "livery.otlp": {"livery.spans", "livery.settings"},
    "livery.metrics": SEAM | {"livery.activity", "livery.metrics", "livery_adapters.names"},
    "livery.roster": {"livery.metrics", "livery_adapters"},
    "livery.survey": SEAM
    | {f"livery.{part}" for part in ("activity", "metrics", "staging", "superseding", "under_way")},
    "livery.scrape": SEAM
    | FACTS
    | {f"livery.{part}" for part in ("metrics", "roster", "service")}
    | {"livery_adapters"},
    # What several processes of one server say to each other; the engine's own messages are among it.
    "livery.workers": SEAM
    | FACTS
    | {f"livery.{part}" for part in ("activity", "metrics", "staging", "superseding", "survey", "tenancy")}
    | {"livery.under_way", "livery.workers"}
    | {f"livery.engine.{part}" for part in ("messages", "pulse", "starvation", "streams", "supervisor")}
    | {"livery_adapters"},
    "livery.overview": SEAM
    | FACTS
    | {f"livery.{part}" for part in ("activity", "beside", "roster", "service", "status_rows", "survey", "tenancy")}
    | {"livery.adapter_views", "livery.under_way"}
    | {"livery_adapters"},
    "livery.status_rows": {f"livery.{part}" for part in ("activity", "served", "tenancy", "under_way")}
    | {"livery_adapters"},
    "livery.answer_text": SEAM | FACTS | {"livery.stops", "livery.text"},
    "livery.admission": FACTS | {"livery.beside", "livery.lease", "livery.tenancy"},
    "livery.generation": SEAM
    | FACTS
    | {f"livery.{part}" for part in ("admission", "answer_text", "metrics", "reading", "stops", "text")},
    "livery.data_folder": {"livery.locks", "livery_adapters"},
    "livery.proving": SEAM | {"livery_adapters"},
    "livery.lease": SEAM | {"livery.refusals", "livery.tenancy", "livery_adapters"},
    "livery.standing": {"livery_adapters"},
    "livery.staging": set(),
    "livery.meaning": FACTS
    | {f"livery.{part}" for part in ("lease", "staging", "standing", "tenancy")}
    | {"livery_adapters"},
    "livery.descriptors": set(),
    "livery.holds": SEAM | FACTS | {"livery.descriptors", "livery_adapters"},
    "livery.served": SEAM
    | FACTS
    | {f"livery.{part}" for part in ("beside", "holds", "lease", "meaning", "proving", "standing", "tenancy")}
    | {"livery.superseding", "livery.sweeping", "livery.under_way", "livery.vitals", "livery.warming"}
    | {"livery_adapters"},
    "livery.sweeping": SEAM | FACTS | {"livery.holds", "livery_adapters"},
    "livery.warming": SEAM | FACTS | {"livery_adapters"},
    "livery.followed": SEAM | {"livery.data_folder", "livery.served", "livery_adapters"},
    "livery.superseding": {"livery.lease"},
    "livery.live": {"livery.superseding", "livery.tenancy", "livery.under_way", "livery_adapters"},
    "livery.serving": {f"livery.{part}" for part in ("served", "superseding", "survey", "tenancy", "under_way")}
    | {"livery_adapters"},
    "livery.under_way": set(),
    "livery.adapter_views": {"livery_adapters"},
    "livery.intakes": FACTS | {"livery.tenancy", "livery_adapters"},
    "livery.origins": FACTS | {"livery.intakes", "livery_adapters"},
    "livery.adding": {"livery.tenancy", "livery_adapters"},
    "livery.pushing": {f"livery.{part}" for part in ("adapter_views", "adding", "management", "origins", "superseding")}
    | {"livery_adapters"},
    "livery.management": FACTS
    | {
        f"livery.{part}"
        for part in ("adapter_views", "adding", "beside", "intakes", "live", "origins", "tenancy", "under_way")
    }
    | {"livery_adapters"},
    "livery.managed": FACTS
    | {f"livery.{part}" for part in ("adapter_views", "adding", "management", "origins", "pushing", "tenancy")}
    | {"livery.under_way"}
    | {"livery_adapters"},
    "livery.tools": SEAM | {"livery.tools"},
    "livery.jobs": SEAM | {"livery.chat_template", "livery.lease", "livery.tools"},
    "livery.reading": FACTS | {"livery.tools", "livery_adapters"},
    "livery.profiles": SEAM | FACTS | {"livery.lease", "livery_adapters"},
    "livery.prompts": FACTS | {"livery.beside", "livery.lease", "livery.text"},
    "livery.pooling": SEAM
    | FACTS
    | {f"livery.{part}" for part in ("admission", "beside", "generation", "lease", "metrics", "prompts", "text")}
    | {"livery_adapters"},
    "livery.sampling": SEAM | FACTS | {"livery.prompts"},
    "livery.cards": SEAM | {"livery.lease", "livery_adapters"},
    "livery.service": SEAM
    | FACTS
    | {
        f"livery.{part}"
        for part in (
            *("admission", "beside", "cards", "generation", "grammar_check", "lease", "metrics"),
            *("pooling", "profiles", "prompts", "reading", "roster", "sampling", "served", "survey", "tenancy"),
            *("text", "vitals"),
        )
    }
    | {"livery.adapter_text", "livery_adapters"},
    "livery.assembly": SEAM
    | TEXT
    | {f"livery.{part}" for part in ("adapter_text", "data_folder", "followed", "foreign_templates", "grammar_check")}
    | {f"livery.{part}" for part in ("admission", "intakes", "lease", "management", "reading", "served", "service")}
    | {f"livery.{part}" for part in ("scrape", "serving", "survey", "tenancy", "vitals")}
    | {"livery_adapters"},
    "livery.api": SEAM
    | FACTS
    | {
        f"livery.{part}"
        for part in (
            *(
                "activity",
                "adapter_views",
                "adding",
                "admission",
                "answer_text",
                "api",
                "beside",
                "cards",
                "descriptors",
                "foreign_json",
                "generation",
                "lease",
                "logs",
                "managed",
                "management",
                "metrics",
            ),
            *(
                "otlp",
                "overview",
                "pushing",
                "reading",
                "scrape",
                "service",
                "spans",
                "status_rows",
                "tenancy",
                "tools",
            ),
        )
    }
    | {"livery_adapters"},
    "livery.engine": {
        f"livery.{part}" for part in ("beginning", "engine", "grammars", "host", "logs", "models", "scratch")
    }
    | {"livery_adapters"},
    "livery.evaluation": SEAM
    | TEXT
    | FACTS
    | {"livery.evaluation", "livery.foreign_json", "livery.profiles", "livery_adapters", "livery_loadtest"}
    | {"livery.answer_text", "livery.sampling", "livery.stops"},
    "livery.bench": {"livery.engine", "livery_adapters", "livery_loadtest"},
    "livery.bench.http": {"livery", "livery_adapters", "livery_loadtest"},
    "livery.training": TEXT
    | {f"livery.{part}" for part in ("engine", "foreign_json", "models", "training")}
    | {"livery_adapters", "livery_loadtest"},
    "livery.scale": set(),
    "livery.scale.plan": {
        "livery.bench.physics",
        "livery.engine.lengths",
        "livery.engine.step_size",
        "livery_adapters",
        "livery_loadtest",
    },
    "livery.scale.simulation": {"livery.scale.plan", "livery.scale.ray_routing", "livery_loadtest"},
    "livery.running": SEAM
    | TEXT
    | FACTS
    | {
        f"livery.{part}"
        for part in (
            *(
                "api",
                "assembly",
                "beginning",
                "data_folder",
                "descriptors",
                "engine",
                "gguf_forms",
                "listening",
                "logs",
            ),
            "models",
            "otlp",
            *("reading", "ready", "service", "serving", "settings", "spans", "superseding", "survey", "tenancy"),
            *("variables", "workers"),
        )
    }
    | {"livery_adapters"},
    "livery.commands": {"livery", "livery_adapters", "livery_loadtest"},
    **{
        f"livery.scale.{name}": {"livery", "livery_adapters"}
        for name in (
            "ray_app",
            "ray_bodies",
            "ray_config",
            "ray_exchange",
            "ray_replica",
            "ray_router",
            "ray_routing",
            "ray_words",
        )
    },
    "livery.cli": {"livery", "livery_adapters", "livery_loadtest"},
    "livery.__main__": {"livery.cli", "livery.beginning"},
    "livery_adapters": {"livery_adapters"},
    "livery_loadtest": {"livery_loadtest"},
}
HTTP_SIDE = {part for part in ALLOWED if part.startswith("livery.")} - {
    "livery.engine",
    "livery.bench",
    "livery.commands",
    "livery.cli",
    "livery.training",
}

# Who catches everything, or a tuple of nearly everything, and why it may: each is the border where one failure must not
# spread.
BROAD_EXCEPT = {
    ("livery.engine.model", "base_shapes"),  # a model's own code that fails is a refused model
    ("livery.engine.weightless", "weightless"),
    ("livery.engine.core", "_attempt"),  # a step's failure belongs to the requests in it
    ("livery.engine.loader", "_finish"),  # one bad adapter must not end the loader
    ("livery.engine.vllm_adapters", "_load"),  # nor all requests over vLLM
    ("livery.bench.suite", "_in_part"),  # what fails in one part of a run is no reason to lose the others
    ("livery.api.boundary", "__call__"),  # what nobody expected becomes a 500 of the usual shape
    ("livery.workers.hub", "_answered"),  # a worker waits for an answer, whatever it is
    ("livery.workers.hub", "_stream"),  # and a client for an end
    ("livery.intakes", "_settle"),  # a thread's failure is its waiter's
    ("livery_adapters.shared_threads", "_do_next"),  # as there
    ("livery.engine.vllm_process", "call"),  # vLLM tells every failed call as a bare Exception
    ("livery.grammar_process", "_tried"),  # a grammar that breaks the compiler is a refused grammar
    ("livery.api.sse", "_pump"),  # once a stream has begun, any failure is an event in it
    ("livery_adapters.sources", "_settle"),  # one adapter's surprise must not keep all others out
    ("livery.followed", "_watch"),  # nor anything else end the following of the folder
    ("livery.otlp", "_send_all"),  # one request's trace must not end the sending of all others
    ("livery.engine.runner", "_prove"),  # whatever a model that nobody knows breaks with, it is a refused model
    ("livery.engine.lora.experts", "_agrees"),  # experts of other parts than described aren't those that are known
    ("livery.engine.kernels.cuda.varlen", "probe"),  # a function of torch's that fails at all isn't used
    ("livery.commands.verify_peft", "_peft_output"),  # what PEFT breaks with is what the command tells
}


def sources() -> dict[str, ast.Module]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found[name] = ast.parse(path.read_text())
    return found


SOURCES = sources()


def imports(tree: ast.Module) -> Iterator[str]:
    """Everything a module imports, inside functions too; type-only imports count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


GRAPH = {name: {target for target in imports(tree) if target != name} for name, tree in SOURCES.items()}
OWN = {name: {target for target in targets if target in SOURCES} for name, targets in GRAPH.items()}


def top_level_graph() -> dict[str, set[str]]:
    """Imports that run when a module is imported: those in functions and under TYPE_CHECKING don't."""
    graph = {}
    for name, tree in SOURCES.items():
        statements = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        graph[name] = set(imports(ast.Module(statements, [])))
    return graph


def reachable(start: str) -> set[str]:
    graph = top_level_graph()
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        for target in graph.get(name, set()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def within(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def part_of(name: str) -> str:
    fitting = [part for part in ALLOWED if within(name, {part})]
    assert fitting, f"{name} belongs to no part: say in ALLOWED what it may import"
    return max(fitting, key=len)


def test_arrows_point_one_way() -> None:
    for name, targets in OWN.items():
        if name == "livery":
            assert not targets
            continue
        allowed = ALLOWED[part_of(name)] | {part_of(name)}
        # `from livery.x import y` counts for x; the bare package only holds the version.
        wrong = {target for target in targets if target not in PACKAGES and not within(target, allowed)}
        parents = {target for target in wrong if any(other.startswith(f"{target}.") for other in targets - wrong)}
        assert not wrong - parents, f"{name} imports {wrong - parents}"


def test_nobody_but_the_command_line_imports_commands() -> None:
    above = {"livery.commands", "livery.cli"}
    for name, targets in OWN.items():
        if not within(name, above | {"livery.__main__"}):
            assert not {target for target in targets if within(target, above)}, name


def test_engines_know_no_http_or_metrics_library() -> None:
    for name, targets in GRAPH.items():
        if name.startswith("livery.engine"):
            wrong = {target for target in targets if within(target, {"fastapi", "starlette", "prometheus_client"})}
            assert not wrong, f"{name} imports {wrong}"


def test_the_deciding_side_imports_no_torch() -> None:
    for name in DECIDING:
        assert name in SOURCES
        assert not {target for target in reachable(name) if within(target, {"torch", "transformers"})}, name


def test_the_computing_side_makes_no_policy() -> None:
    for name in COMPUTING:
        assert not OWN[name] & {"livery.engine.scheduler", "livery.engine.residency", "livery.engine.core"}, name


def test_the_api_process_imports_no_torch() -> None:
    """But with `--engine vllm`, whose AsyncLLM runs in it: of that engine's modules none else imports any."""
    for name in SOURCES:
        if within(name, HTTP_SIDE | {"livery.engine.client", "livery.engine.supervisor", "livery.running.engines"}):
            assert not {target for target in reachable(name) if within(target, {"torch", "vllm"})}, name


def test_only_the_engine_over_vllm_knows_vllm() -> None:
    over_vllm = {name for name in SOURCES if name.startswith("livery.engine.vllm")}
    for name, targets in GRAPH.items():
        if name not in over_vllm:
            assert not {target for target in targets if within(target, {"vllm"})}, name
    wrong = {name for name, targets in OWN.items() if targets & over_vllm} - over_vllm
    assert wrong <= {"livery.running.engines", "livery.commands.doctor"}


def test_no_import_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path[path.index(name) :], name))}"
        if name in done:
            return
        for target in OWN[name]:
            # A package's __init__ re-exporting its own modules is reached through them as well.
            if target != name and not name.startswith(f"{target}."):
                visit(target, (*path, name))
        done.add(name)

    for name in SOURCES:
        visit(name, ())


def test_no_pickle_anywhere() -> None:
    banned = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "multiprocessing"}
    for name, targets in GRAPH.items():
        # vLLM starts its processes by multiprocessing; which these are can be asked there alone. Nothing is sent by it.
        allowed = {"multiprocessing"} if name == "livery.engine.vllm_process" else set()
        assert not {target for target in targets if target.partition(".")[0] in banned - allowed}, name
    for name, tree in SOURCES.items():
        # torch.load under any alias, numpy's pickled arrays, and either one imported by name.
        assert not GRAPH[name] & {"torch.load", "torch.serialization", "numpy.load"}, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "load":
                owner = ast.unparse(node.value)
                assert owner not in module_aliases(tree, {"torch", "numpy"}), f"{name}: {owner}.load reads pickles"
            assert not (isinstance(node, ast.keyword) and node.arg == "allow_pickle"), name


def module_aliases(tree: ast.Module, modules: set[str]) -> set[str]:
    """The names under which a module's source reaches some modules."""
    imported = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {alias.asname or alias.name for alias in imported if alias.name in modules}


def test_broad_excepts_only_at_named_borders() -> None:
    found = set()
    for name, tree in SOURCES.items():
        constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler) and _is_broad(node, constants) and not _reraises(node):
                    found.add((name, function.name))
    assert found == BROAD_EXCEPT, f"not named: {found - BROAD_EXCEPT}; gone: {BROAD_EXCEPT - found}"


def _is_broad(handler: ast.ExceptHandler, constants: dict[str, ast.expr]) -> bool:
    """Everything, or in a tuple what nearly everything is: wrong types, and errors of libraries."""
    kinds = set(_caught(handler.type, constants)) if handler.type is not None else {"BaseException"}
    return bool(kinds & {"Exception", "BaseException"}) or {"TypeError", "RuntimeError"} <= kinds


def _caught(kind: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    """What a clause names, tuples and constants of its module taken apart."""
    match kind:
        case ast.Tuple():
            for one in kind.elts:
                yield from _caught(one, constants)
        case ast.Starred():
            yield from _caught(kind.value, constants)
        case ast.Name() if isinstance(constants.get(kind.id), ast.Tuple):
            yield from _caught(constants[kind.id], constants)
        case _:
            yield ast.unparse(kind)


def _reraises(handler: ast.ExceptHandler) -> bool:
    """A handler that cleans up and lets the error go on catches nothing."""
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None


def test_files_stay_small() -> None:
    for package in PACKAGES.values():
        for path in package.rglob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines: can it be two things?"


def test_the_slowest_test_files_are_there() -> None:
    """A name that nobody bears would go unnoticed, and its file last."""
    assert [name for name in SLOWEST if not (ROOT / "tests" / name).is_file()] == []
    assert len(set(SLOWEST)) == len(SLOWEST)
