"""Grammars that answers are held to, compiled under limits: a grammar costs at most so much, whatever it says.

llguidance compiles them: a lexer of regular-expression derivatives under an Earley parser, walked along a trie of the
tokenizer's vocabulary (Moskal et al., llguidance, 2024). Its fuel counts steps, so the same grammar is refused on any
machine. Knows no request, no process and no engine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from livery.engine.base import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # there for type checkers only

MAX_SOURCE = 128 << 10  # bytes
SHOWN = 300  # characters of a reason
# At most one line break and its indentation, or one space, between two parts of a JSON text: a model that likes blank
# lines would else write them for ever.
JSON_WHITESPACE: JsonCompileOptions = {"whitespace_pattern": r"\n {0,16}| "}
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms
    step_lexer_fuel=200_000,  # 15 ms of one mask
    step_max_items=50_000,  # 3 ms of one mask
    max_items_in_row=2_000,
    max_lexer_states=20_000,  # of 1 or 2 KB each
    max_grammar_size=500_000,
    verbose_errors=False,
)


class GrammarRefused(Exception):
    """A grammar that no answer can be held to; the message says why in llguidance's words."""


class TokenizerUnfit(Exception):
    """A tokenizer that grammars can't be held against; the message says why."""


class GrammarCompiler:
    """Compiles grammars for one tokenizer. For any thread, though making one holds the interpreter for some 0.3 s."""

    def __init__(self, tokenizer: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """`tokenizer` is the text of a `tokenizer.json`; `vocab_size` the logits' width. Raises TokenizerUnfit."""
        if not eos_token_ids:
            raise TokenizerUnfit("the model has no end-of-sequence token, so that no answer could end")
        try:
            self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        except ValueError as error:
            raise TokenizerUnfit(f"the model's tokenizer can't be used with grammars: {shortened(error)}") from None

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A matcher at the grammar's beginning, to be copied for each answer. Raises GrammarRefused."""
        size = len(grammar.source.encode())
        if size > MAX_SOURCE:
            raise GrammarRefused(f"it has {size} bytes; at most {MAX_SOURCE} are taken")
        matcher = LLMatcher(self._tokenizer, written(grammar), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise GrammarRefused(shortened(matcher.get_error()))
        return matcher

    def prove(self, grammar: Grammar) -> None:
        """Compile a grammar and look for an answer's first token. Raises GrammarRefused."""
        matcher = self.compile(grammar)
        matcher.compute_bitmask()
        if matcher.is_error():
            raise GrammarRefused(f"no answer can satisfy it ({shortened(matcher.get_error())})")


def shortened(reason: object) -> str:
    """A reason of llguidance's without what is only for its makers, on one line."""
    text = " ".join(str(reason).replace("<non-verbose/>", "").split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def written(grammar: Grammar) -> str:
    """The grammar as llguidance reads it. Raises GrammarRefused."""
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.source)
    try:
        schema = json.loads(grammar.source)
        if not isinstance(schema, dict | bool):
            raise GrammarRefused(f"a JSON schema is an object or a boolean, not {type(schema).__name__}")
        return LLMatcher.grammar_from_json_schema(grammar.source, overrides=JSON_WHITESPACE)
    except (ValueError, RecursionError) as error:
        raise GrammarRefused(shortened(error)) from None
