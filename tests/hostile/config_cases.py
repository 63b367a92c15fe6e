"""Configurations that are no JSON, lie, carry patterns that never end, or ask for what nobody has."""

from __future__ import annotations

import json
from pathlib import Path

from hostile.base import good
from hostile.case import Build, Case, config, raw_config, write


def _bytes(data: bytes) -> Build:
    return raw_config(lambda _: data)


def _with(text: str) -> Build:
    """One more member in the text of a good configuration."""
    return raw_config(lambda data: data.rstrip().removesuffix(b"}") + b", " + text.encode("utf-8") + b"}")


def _json(name: str, build: Build, says: str, mistake: str = "") -> Case:
    return Case("json", name, build, "bad_json", says, mistake=mistake)


JSON = (
    _json("a list", _bytes(b'["LORA"]'), "is a list, not a JSON object"),
    _json("null", _bytes(b"null"), "is null, not a JSON object"),
    _json("a string", _bytes(b'"LORA"'), "is a text, not a JSON object"),
    _json("nested 100 deep", _with('"more": ' + "[" * 100 + "]" * 100), "nested deeper than 8 levels"),
    _json("nested 30,000 deep", _with('"more": ' + "[" * 30_000 + "]" * 30_000), "is nested too deeply", "depth"),
    _json("brackets that never close", _bytes(b"[" * 60_000), "is nested too deeply", "depth"),
    _json("a key twice", _with('"r": 4, "r": 8'), "the same key twice ('r')"),
    _json("a key twice further in", _with('"rank_pattern": {"q_proj": 4, "q_proj": 64}'), "twice ('q_proj')"),
    _json("NaN", _with('"lora_dropout": NaN'), "holds NaN, which is not JSON"),
    _json("Infinity", _with('"lora_dropout": Infinity'), "holds Infinity, which is not JSON"),
    _json("minus Infinity", _with('"lora_dropout": -Infinity'), "holds -Infinity"),
    _json("a number over all bounds", _with('"lora_dropout": 1e999'), "a number that is too large"),
    _json("an integer of 50,000 digits", _with('"lora_dropout": ' + "9" * 50_000), "an integer of 50000 digits"),
    _json("an integer beyond 64 bits", _with(f'"lora_dropout": {2**64}'), "an integer of 20 digits"),
    _json("half a surrogate pair in a value", _with(r'"more": "\ud800"'), "half a surrogate pair", "surrogate"),
    _json("half a surrogate pair in a key", _with(r'"\udfff": null'), "half a surrogate pair", "surrogate"),
    _json("not UTF-8", raw_config(lambda data: data.replace(b"LORA", b"LOR\xc1")), "is not UTF-8 text (byte 0xc1"),
    _json("UTF-16", raw_config(lambda data: data.decode().encode("utf-16")), "is not UTF-8 text (byte 0xff at 0)"),
    _json("a byte order mark", raw_config(lambda data: b"\xef\xbb\xbf" + data), "byte order mark"),
    _json("a comma too many", raw_config(lambda data: data.rstrip().removesuffix(b"}") + b",}"), "is not valid JSON"),
    _json("a comment", raw_config(lambda data: b"// LoRA\n" + data), "at '// LoRA"),
    _json("a bare NUL", raw_config(lambda data: data + b"\0"), "Extra data"),
    _json("a control character in a string", _with('"revision": "a\x00b"'), "Invalid control character"),
    Case(
        "json",
        "a string of a megabyte",
        _with(f'"revision": "{"a" * (1 << 20)}"'),
        "too_large",
        "1048576 bytes",
        "store",
        mistake="configuration too large",
    ),
)


def _type(name: str, build: Build, says: str) -> Case:
    return Case("type", f"peft_type {name}", build, "unsupported_peft_type", says)


TYPES = (
    _type("absent", config(drop=("peft_type",)), "peft_type is None"),
    _type("in lower case", config(peft_type="lora"), "peft_type is 'lora'"),
    _type("with a space", config(peft_type="LORA "), "peft_type is 'LORA '"),
    _type("a list", config(peft_type=["LORA"]), "peft_type is ['LORA']"),
    _type("a number", config(peft_type=1), "peft_type is 1;"),
    _type("a path", config(peft_type="../../formats/lora"), "peft_type is '../../formats/lora'"),
    _type("of soft prompts", config(peft_type="PROMPT_TUNING"), "peft_type is 'PROMPT_TUNING'"),
    _type("of 10 KB", config(peft_type="A" * 10_000), "peft_type is 'AAAA"),
)


def _field(name: str, build: Build, says: str) -> Case:
    return Case("field", name, build, "bad_field", says)


def _pattern(name: str, build: Build, says: str = "can't be matched in bounded time") -> Case:
    return Case("pattern", name, build, "unsafe_pattern", says)


FIELDS = (
    _field("r is 0", config(r=0), "r is 0 and must be"),
    _field("r is negative", config(r=-4), "r is -4 and must be"),
    _field("r is true", config(r=True), "r is True and must be"),
    _field("r is 4.0", config(r=4.0), "r is 4.0 and must be"),
    _field("r is 1e308", config(r=1e308), "r is 1e+308 and must be"),
    _field("r is text", config(r="4"), "r is '4' and must be"),
    _field("r is null", config(r=None), "r is None and must be"),
    _field("lora_alpha is text", config(lora_alpha="16"), "lora_alpha is '16' and must be"),
    _field("lora_alpha is 1e308", config(lora_alpha=1e308), "lora_alpha is 1e+308 and must be"),
    _field("lora_alpha is null", config(lora_alpha=None), "lora_alpha is None and must be"),
    _field("lora_alpha is true", config(lora_alpha=True), "lora_alpha is True and must be"),
    _field("use_rslora is text", config(use_rslora="false"), "use_rslora is 'false' and must be true or false"),
    _field("use_rslora is 1", config(use_rslora=1), "use_rslora is 1 and must be true or false"),
    _field("rank_pattern is a list", config(rank_pattern=["q_proj"]), "rank_pattern is ['q_proj'] and must be"),
    _field("a rank in rank_pattern is 0", config(rank_pattern={"q_proj": 0}), "rank_pattern['q_proj'] is 0"),
    _field(
        "an alpha in alpha_pattern is text", config(alpha_pattern={"q_proj": "1"}), "alpha_pattern['q_proj'] is '1'"
    ),
    _field("3,000 patterns", config(rank_pattern={f"m{n}": 4 for n in range(3000)}), "rank_pattern has 3000 entries"),
    _field("target_modules is a number", config(target_modules=7), "target_modules is 7 and must be"),
    _field("target_modules holds a path", config(target_modules=["../q_proj"]), "target_modules is ['../q_proj']"),
    _field("target_modules holds a pattern", config(target_modules=["(a+)+$"]), "target_modules is ['(a+)+$']"),
    _field("target_modules holds null", config(target_modules=[None]), "target_modules is [None]"),
    _field("exclude_modules holds a pattern", config(exclude_modules=["(a|a)*$"]), "exclude_modules is ['(a|a)*$']"),
    _field("layers_to_transform is text", config(layers_to_transform="0"), "layers_to_transform is '0'"),
    _field("layers_to_transform holds true", config(layers_to_transform=[True]), "layers_to_transform is [True]"),
    _field("layers_pattern is a pattern", config(layers_pattern="(l+)+$"), "layers_pattern is ['(l+)+$']"),
    _field("layers_pattern is an object", config(layers_pattern={"a": 1}), "layers_pattern is [{'a': 1}]"),
    _field("modules_to_save is text", config(modules_to_save="lm_head"), "modules_to_save is 'lm_head'"),
    _field("the base's name is a list", config(base_model_name_or_path=["a"]), "base_model_name_or_path is ['a']"),
    _field("the base's name clears the screen", config(base_model_name_or_path="\x1b[2J"), r"is '\x1b[2J'"),
    _field("the base's name is 2 KB", config(base_model_name_or_path="a" * 2048), "base_model_name_or_path is 'aaa"),
)

PATTERNS = (
    _pattern("nested repetitions", config(rank_pattern={"(a+)+$": 4}), "'(a+)+$'"),
    _pattern("alternatives that overlap", config(alpha_pattern={"(a|a)*b": 4}), "'(a|a)*b'"),
    _pattern("a back reference", config(rank_pattern={r"(.*)\1\1": 4}), r"'(.*)\\1\\1'"),
    _pattern("a counted repetition", config(rank_pattern={"a{1,60000}": 4}), "'a{1,60000}'"),
    _pattern("a look-ahead", config(rank_pattern={"(?=q)q_proj": 4}), "'(?=q)q_proj'"),
    _pattern("repetitions side by side", config(rank_pattern={".*" * 30 + "b": 4}), "can't be matched"),
    _pattern("of 10 KB", config(rank_pattern={"a" * 10_000: 4}), "'aaaa"),
    _pattern("of nothing", config(alpha_pattern={"": 4}), "the pattern ''"),
    _pattern("an empty alternative", config(rank_pattern={"q_proj|": 4}), "'q_proj|'"),
    _pattern("17 with repetitions", config(rank_pattern={f"a.*{n}": 4 for n in range(17)}), "rank_pattern has 17 "),
    _pattern(
        "17 alternatives with repetitions",
        config(alpha_pattern={"|".join(f"a.*{n}" for n in range(17)): 4}),
        "alpha_pattern has 17 patterns or alternatives",
    ),
    _pattern(
        "repetitions in 513 characters",
        config(rank_pattern={"a.*" * 128 + "b": 4, "b.*" * 128 + "ab": 4}),
        "of 515 characters in all",
    ),
    _pattern(
        "1,025 alternatives", config(rank_pattern={"a" + "|a" * 200 + str(n): 4 for n in range(6)}), "over 1024 alt"
    ),
    _pattern(
        "70,000 characters",
        config(alpha_pattern={f"{n:0500}": 4 for n in range(140)}),
        "alpha_pattern has over 1024 alternatives or over 65536 characters",
    ),
)


def _unsupported(name: str, build: Build, says: str) -> Case:
    return Case("unsupported", name, build, "unsupported_field", says)


UNSUPPORTED = (
    _unsupported(
        "layer_replication", config(layer_replication=[[0, 2], [1, 2]]), "layer_replication is [[0, 2], [1, 2]]:"
    ),
    _unsupported("megatron_config", config(megatron_config={"a": 1}), "megatron_config is"),
    _unsupported("use_qalora", config(use_qalora=True), "QA-LoRA"),
    _unsupported("use_bdlora", config(use_bdlora={"a": 1}), "block-diagonal LoRA is not supported"),
    _unsupported("arrow_config", config(arrow_config={"top_k": 3}), "Arrow"),
    _unsupported(
        "an initialisation nobody knows", config(init_lora_weights="../../x"), "init_lora_weights is '../../x'"
    ),
    Case("unsupported", "a field nobody knows", config(lora_quantum=True), "unknown_field", "'lora_quantum' is True"),
    Case("unsupported", "a field named like code", config(**{"__init__": "os.system"}), "unknown_field", "'__init__'"),
    Case("unsupported", "PiSSA by chance", config(init_lora_weights="pissa_niter_4"), "unconverted_init", "niter_4'"),
    Case("unsupported", "CorDA not converted", config(init_lora_weights="corda"), "unconverted_init", "'corda'"),
    Case("unsupported", "LoftQ", config(init_lora_weights="loftq"), "unconverted_init", "only the quantised base"),
)


def _no_fields_but(directory: Path) -> None:
    """Everything that PEFT has a default for may be absent."""
    full = json.loads(good()[0])
    kept = {name: full[name] for name in ("peft_type", "r", "lora_alpha", "target_modules")}
    write(directory, json.dumps(kept).encode(), good()[1])


_CODE = {"base_model_class": "system", "parent_library": "os"}
FINE = (
    Case("fine", "auto_mapping names code, which nobody imports", config(auto_mapping=_CODE), ""),
    Case("fine", "target_modules is a pattern that never ends, which nobody runs", config(target_modules="(a*)*$"), ""),
    Case("fine", "exclude_modules is one", config(exclude_modules="((a+)*)+b"), ""),
    Case("fine", "patterns with repetitions within bounds", config(rank_pattern={"a.*" * 12 + "b": 64}), ""),
    Case("fine", "only the fields that matter", _no_fields_but, ""),
    Case("fine", "fields nobody knows that are empty", config(later_field=None, other={}, more=[], off=False), ""),
)

CASES = (*JSON, *TYPES, *FIELDS, *PATTERNS, *UNSUPPORTED, *FINE)
