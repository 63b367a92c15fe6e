"""Whatever bytes an upload consists of, reading it ends in an adapter or in AdapterRefused, soon."""

from __future__ import annotations

import json
import re
import struct
import tempfile
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from adapters.peft_made import Weights, check_directory, make, tiny_base
from livery_adapters.formats import convert
from livery_adapters.patterns import NamePatterns
from livery_adapters.peft_config import Endings
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

LIMITS = Limits(max_rank=16, max_weight_bytes=1 << 20, max_header_bytes=1 << 16, max_tensors=64)
# Hypothesis fails an example that takes longer than this: room for a busy machine, none for a second scan of
# anything that grows faster than the file.
bounded = settings(max_examples=120, deadline=timedelta(seconds=5))


@cache
def real() -> tuple[bytes, bytes]:
    """The two files of a good adapter."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), r=2, target_modules=["q_proj"], rank_pattern={"layers.1.*": 3})
        return (Path(folder) / CONFIG_NAME).read_bytes(), (Path(folder) / WEIGHTS_NAME).read_bytes()


@pytest.fixture(scope="module", autouse=True)
def _made_before() -> None:
    """Making the model and the adapter is nobody's running time."""
    real()
    tiny_base()


def accepted(config: bytes, weights: bytes) -> bool:
    """Whether these two files make an adapter. Anything but AdapterRefused goes through to the test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CONFIG_NAME).write_bytes(config)
        (folder / WEIGHTS_NAME).write_bytes(weights)
        try:
            checked = check_directory(folder, tiny_base(), LIMITS)
            # What passed the checks is then opened by the safetensors library, which may still disagree.
            adapter = convert(folder, checked.manifest, Weights("llama"))
        except AdapterRefused as refused:
            assert refused.message
            return False
        assert len(adapter.linears) + len(adapter.embeddings) == checked.coverage.adapted
        return True


snippets = st.sampled_from([b"null", b"-1", b"[]", b"{", b'"', b"9", b"NaN", b"1e999"])


@st.composite
def mutations(draw: st.DrawFn, original: bytes, reach: int) -> bytes:
    """`original` with a few bytes changed, cut out or put in, mostly within the first `reach`."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(reach, len(data))))
        removed = draw(st.integers(0, 8))
        data[at : at + removed] = draw(
            st.binary(max_size=8) | st.sampled_from([b"null", b"-1", b"[]", b"{", b'"', b"9"])
        )
    return bytes(data)


def header_of(weights: bytes) -> dict[str, object]:
    (length,) = struct.unpack("<Q", weights[:8])
    header: dict[str, object] = json.loads(weights[8 : 8 + length])
    return header


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
# Numbers that are nearly right are the dangerous ones.
offsets = st.integers(-2, 2**63) | st.sampled_from([0, 2**31, 2**32, 2**63, 2**64])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "", "f32"]) | json_values,
        "shape": st.lists(offsets, max_size=9) | json_values,
        "data_offsets": st.lists(offsets, max_size=3) | json_values,
    }
)


def test_the_real_files_are_accepted() -> None:
    assert accepted(*real())


@bounded
@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_random_bytes_are_refused(config: bytes, weights: bytes) -> None:
    assert not accepted(config, weights)
    assert not accepted(real()[0], weights)


@bounded
@given(st.data())
def test_a_truncated_file_is_refused_as_incomplete(data: st.DataObject) -> None:
    config, weights = real()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CONFIG_NAME).write_bytes(config)
        (folder / WEIGHTS_NAME).write_bytes(weights[: data.draw(st.integers(0, len(weights) - 1))])
        with pytest.raises(AdapterRefused) as caught:
            check_directory(folder, tiny_base(), LIMITS)
        assert caught.value.code == "incomplete"
    assert not accepted(config[: data.draw(st.integers(0, len(config) - 1))], weights)


@bounded
@given(st.data())
def test_a_mutated_file_is_read_or_refused(data: st.DataObject) -> None:
    config, weights = real()
    if data.draw(st.booleans()):
        config = data.draw(mutations(config, len(config)))
    if data.draw(st.booleans()):
        weights = data.draw(mutations(weights, 8 + len(json.dumps(header_of(weights)))))
    accepted(config, weights)


@bounded
@given(st.dictionaries(st.sampled_from(sorted(json.loads(real()[0]))) | st.text(max_size=12), json_values, max_size=4))
def test_any_value_in_any_field_is_read_or_refused(fields: dict[str, object]) -> None:
    config, weights = real()
    accepted(json.dumps({**json.loads(config), **fields}).encode("utf-8", "surrogatepass"), weights)


@bounded
@given(st.data(), st.binary(max_size=64))
def test_any_header_is_read_or_refused(data: st.DataObject, body: bytes) -> None:
    config, weights = real()
    header = header_of(weights)
    names = st.sampled_from(sorted(header)) | st.text(max_size=20)
    header |= data.draw(st.dictionaries(names, entries | json_values, min_size=1, max_size=3))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    tail = weights[8 + struct.unpack("<Q", weights[:8])[0] :]
    accepted(config, struct.pack("<Q", len(text)) + text + tail + body)


@bounded
@given(st.integers(0, 2**64 - 1), st.binary(max_size=200))
def test_any_claimed_header_length_is_refused(length: int, rest: bytes) -> None:
    assert not accepted(real()[0], struct.pack("<Q", length) + rest)


# -- patterns: the same answers as PEFT's regular expressions, without their running time -----------------

atoms = st.sampled_from(["a", "b", "q_proj", "0", ".", r"\.", r"\d", "[0-9]", "-", "[ab]", "[1-37_]", "[a-b.]"])
marked = st.tuples(atoms, st.sampled_from(["", "", "*", "+", "?"])).map("".join)
chains = st.lists(marked, max_size=3).map("".join)
groups = st.builds(
    lambda opened, parts: f"{opened}{'|'.join(parts)})",
    st.sampled_from(["(", "(?:"]),
    st.lists(st.one_of(chains, chains.map(lambda chain: f"a({chain}|b)")), min_size=1, max_size=3),
)
branches = st.builds(
    lambda front, parts, end: front + "".join(parts) + end,
    st.sampled_from(["", "^"]),
    st.lists(st.one_of(marked, marked, groups), min_size=1, max_size=6),
    st.sampled_from(["", "$"]),
)
names = st.lists(st.sampled_from(["a", "b", "q_proj", "0", "17", "-", "ab"]), min_size=1, max_size=5).map(".".join)


@settings(max_examples=600, deadline=timedelta(seconds=5))
@given(
    st.lists(st.lists(branches, min_size=1, max_size=3).map("|".join), min_size=1, max_size=4, unique=True),
    st.lists(names, min_size=1, max_size=8),
)
def test_accepted_patterns_match_what_their_regular_expression_matches(texts: list[str], modules: list[str]) -> None:
    try:
        patterns = NamePatterns("rank_pattern", {text: number for number, text in enumerate(texts)})
    except AdapterRefused as refused:
        assert refused.code == "unsafe_pattern"
        return
    for name in modules:
        # As PEFT's get_pattern_key has it: the first one that matches.
        matching = [text for text in texts if re.match(rf"(.*\.)?({text})$", name)]
        assert list(patterns.matching(name)) == matching
        assert patterns.first(name, -1) == (texts.index(matching[0]) if matching else -1)


def test_ranges_of_layers_are_named_as_people_do() -> None:
    text = r"layers\.(1[0-9]|2[0-7])\..*(q|k)_proj"
    patterns = NamePatterns("alpha_pattern", {text: 32})
    for layer in range(40):
        for part in ("q_proj", "k_proj", "v_proj"):
            name = f"model.layers.{layer}.self_attn.{part}"
            assert patterns.first(name, 0) == (32 if get_pattern_key([text], name) == text else 0)
            assert (patterns.first(name, 0) == 32) == (10 <= layer <= 27 and part != "v_proj")


UNREAD = ["(a|b)*", "(a|b){9}", "(a", "a)", "[a-]", "[b-a]", "[^a]", "(^a)", "(a$)b", "()"]


@pytest.mark.parametrize("text", [*UNREAD, "(a|b)" * 60, "(" * 200 + "a" + ")" * 200])
def test_groups_that_arent_written_out_are_refused(text: str) -> None:
    with pytest.raises(AdapterRefused) as refused:
        NamePatterns("alpha_pattern", {text: 32})
    assert refused.value.code == "unsafe_pattern"


dotted = st.text("ab.", min_size=1, max_size=6)


@bounded
@given(st.lists(dotted, max_size=12), dotted)
def test_endings_are_found_as_one_by_one(ends: list[str], path: str) -> None:
    endings = Endings.of(ends)
    parts = path.split(".")
    parents = [".".join(parts[: count + 1]) for count in range(len(parts))]
    assert endings.fit(path) == path.endswith(tuple(ends))
    assert endings.fit_a_parent(path) == any(parent.endswith(tuple(ends)) for parent in parents)


@bounded
@given(st.text(max_size=40))
def test_any_text_is_a_pattern_or_is_refused(text: str) -> None:
    try:
        NamePatterns("rank_pattern", {text: 4}).first("model.layers.0.self_attn.q_proj", 0)
    except AdapterRefused as refused:
        assert refused.code == "unsafe_pattern"


def test_a_pattern_that_never_ends_as_a_regular_expression_is_answered() -> None:
    patterns = NamePatterns("rank_pattern", {"a.*" * 12 + "b": 4})
    assert patterns.first("a" * 5000, 0) == 0
    assert patterns.first("a" * 5000 + "b", 0) == 4
