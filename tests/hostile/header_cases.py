"""Headers of safetensors files that lie: lengths, offsets, shapes, types and names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.base import good
from hostile.case import A0, B0, Build, Case, Header, header, header_bytes, raw_weights, split, write
from livery_adapters.tensor_file import WEIGHTS_NAME


def _claims(length: int) -> Build:
    return raw_weights(lambda data: length.to_bytes(8, "little") + data[8:])


def _sparse_claim(length: int) -> Build:
    """The header is as long as it says, in a file that takes no room on the disk."""

    def build(directory: Path) -> None:
        write(directory, good()[0], length.to_bytes(8, "little"))
        with (directory / WEIGHTS_NAME).open("r+b") as stream:
            stream.truncate(8 + length)

    return build


def _many(count: int, entry: object) -> Build:
    return header_bytes(json.dumps({str(number): entry for number in range(count)}).encode(), b"")


_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def _bad(name: str, build: Build, says: str, mistake: str = "") -> Case:
    return Case("header", name, build, "bad_header", says, mistake=mistake)


def _deep(depth: int) -> bytes:
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


LENGTHS = (
    _bad("claims 2^64 - 1 bytes", _claims(2**64 - 1), "claims 18446744073709551615 bytes"),
    _bad("claims 2^63 bytes", _claims(2**63), "claims 9223372036854775808 bytes"),
    _bad("claims 100 MB", _claims(100 << 20), "claims 104857600 bytes"),
    _bad("has nine megabytes of zeros", _sparse_claim(9 << 20), "claims 9437184 bytes"),
    _bad("has a megabyte of zeros", _sparse_claim(1 << 20), r"at '\x00\x00"),
    _bad("has no bytes", _claims(0), "Expecting value at ''"),
    Case("header", "reaches past the end", _claims(1 << 19), "incomplete", "needs at least 524296"),
    _bad("lists 200,000 empty tensors", _many(200_000, _EMPTY), "the limit is 8388608"),
    _bad("lists 50,001 tensors", _many(50_001, 0), "holds 50001 tensors; 1 to 50000 are accepted"),
    _bad("holds three million lists", header_bytes(b"[" + b"[]," * 2_700_000 + b"[]]"), "more than the 800000 that"),
    _bad("lists none", header_bytes(b"{}", b""), "holds 0 tensors", "no tensors"),
    _bad("lists only metadata", header_bytes(b'{"__metadata__":{"format":"pt"}}', b""), "holds 0", "no tensors"),
)

JSON = (
    _bad("is no JSON", header_bytes(b"import os"), "Expecting value at 'import os'"),
    _bad("is a list", header_bytes(b"[]"), "is a list, not a JSON object"),
    _bad("is nested 5 deep", header_bytes(_deep(5)), "nested deeper than 4 levels"),
    _bad("is nested 400,000 deep", header_bytes(_deep(400_000)), "is nested too deeply"),
    _bad("is not UTF-8", header_bytes(b'{"\xff\xfe": 0}'), "is not UTF-8 text (byte 0xff at 2)"),
    _bad("begins with a byte order mark", header_bytes(b"\xef\xbb\xbf{}"), "byte order mark"),
    _bad("holds NaN", header_bytes(b'{"a": NaN}'), "holds NaN"),
    _bad("goes on after its end", header_bytes(b"{} {}"), "Extra data"),
    _bad(
        "has metadata of numbers",
        header(lambda h: h.update(__metadata__={"format": 1})),
        "is {'format': 1} and must be an object of text",
    ),
    _bad("has a list as metadata", header(lambda h: h.update(__metadata__=["pt"])), "is ['pt'] and must be"),
    _bad(
        "has metadata in metadata",
        header(lambda h: h.update(__metadata__={"a": {"b": "c"}})),
        "is {'a': {'b': 'c'}} and",
    ),
    _bad(
        "has ten megabytes of metadata",
        header(lambda h: h.update(__metadata__={"a": "b" * (10 << 20)})),
        "claims 10",
    ),
)


def _entry(**changes: Any) -> Callable[[Header], None]:
    """Fields of the first tensor's entry changed; None drops one."""

    def change(found: Header) -> None:
        entry = {**found[A0], **changes}
        found[A0] = {name: value for name, value in entry.items() if value is not None}

    return change


def _shift(found: Header, by: int) -> None:
    for name, entry in found.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]


def _same_bytes(found: Header) -> None:
    """Two tensors of the same bytes: those of the second are then nobody's."""
    first, second = sorted((e for n, e in found.items() if n != "__metadata__"), key=lambda e: e["data_offsets"])[:2]
    second["data_offsets"], second["shape"] = first["data_offsets"], first["shape"]


def _beyond(found: Header) -> None:
    last = max((e for n, e in found.items() if n != "__metadata__"), key=lambda e: e["data_offsets"])
    last["shape"][0] += 1 << 20
    last["data_offsets"][1] += 4 * last["shape"][1] << 20


def _reordered(directory: Path) -> None:
    """The order of names says nothing; PEFT's file the other way round is the same adapter."""
    found, data = split(good()[1])
    write(directory, good()[0], _file(dict(reversed(found.items())), data))


def _file(found: Header, data: bytes) -> bytes:
    text = json.dumps(found).encode()
    return len(text).to_bytes(8, "little") + text + data


def _dtype(dtype: object) -> Case:
    name = f"dtype {json.dumps(dtype)}"
    return Case("header", name, header(_entry(dtype=dtype)), "bad_dtype", f"is {str(dtype)!r}; F32, F16 and BF16")


ENTRIES = (
    *(_dtype(dtype) for dtype in ("F64", "BOOL", "I8", "U64", "F8_E4M3", "F8_E5M2", "C64", "f32", "F33", "")),
    Case("header", "dtype is a number", header(_entry(dtype=32)), "bad_dtype", "is '32'"),
    Case("header", "dtype of a kilobyte", header(_entry(dtype="F" * 1000)), "bad_dtype", "F" * 40 + "'"),
    _bad("two tensors of the same bytes", header(_same_bytes), "overlaps another tensor or leaves a gap"),
    _bad("a gap before the first tensor", header(lambda h: _shift(h, 4)), "overlaps another tensor or leaves a gap"),
    _bad("offsets below zero", header(lambda h: _shift(h, -4)), "the byte range [-4,"),
    _bad("an end before its beginning", header(_entry(data_offsets=[512, 0])), "has -512 bytes"),
    Case("header", "data beyond the file", header(_beyond), "incomplete", "needs 167"),
    _bad("offsets as fractions", header(_entry(data_offsets=[0.0, 512.0])), "the byte range [0.0, 512.0], which"),
    _bad("offsets as truth values", header(_entry(data_offsets=[False, True])), "the byte range [False, True], which"),
    _bad("three offsets", header(_entry(data_offsets=[0, 512, 512])), "which is not a list of two sizes"),
    _bad("offsets of 30 digits", header(_entry(data_offsets=[0, 10**29])), "an integer of 30 digits"),
    _bad("a shape whose bytes wrap to zero", header(_entry(shape=[2**31, 2**31], data_offsets=[0, 0])), "has 0 bytes"),
    _bad("a shape below zero", header(_entry(shape=[-4, -32])), "the shape [-4, -32], which"),
    _bad("a shape of nine dimensions", header(_entry(shape=[1] * 7 + [4, 32])), "not a list of at most 8 sizes"),
    _bad("a shape as text", header(_entry(shape="4x32")), "the shape '4x32', which"),
    _bad("a shape that needs other bytes", header(_entry(shape=[4, 31])), "which is not what F32 [4, 31] needs"),
    _bad("an entry without a shape", header(_entry(shape=None)), "and has ['data_offsets', 'dtype']"),
    _bad("an entry with a stranger's field", header(_entry(url="http://[::1]/")), "'shape', 'url']"),
    _bad("an entry that is null", header(lambda h: h.update({A0: None})), "data_offsets and has None"),
)


def _renamed(name: str) -> Build:
    return header(lambda h: h.update({name: h.pop(A0)}))


def _twice(directory: Path) -> None:
    found, data = split(good()[1])
    text = json.dumps(found).replace(B0, A0).encode()
    write(directory, good()[0], len(text).to_bytes(8, "little") + text + data)


def _badly_named(what: str, name: str, says: str) -> Case:
    return _bad(f"a tensor's name {what}", _renamed(name), says)


NAMES = (
    _badly_named("that climbs", "../../../etc/passwd", "'../../../etc/passwd'"),
    _badly_named("that is an absolute path", "/etc/passwd", "tensor name '/etc/passwd'"),
    _badly_named("of a Windows path", "..\\..\\boot.ini", "boot.ini"),
    _badly_named("with a NUL", f"{A0}\0.safetensors", "x00"),
    _badly_named("with a line end", f"{A0}\nadapter good activated", "is not a dotted path"),
    _badly_named("with an escape sequence", "\x1b[2J\x1b]0;owned\x07", r"'\x1b[2J"),
    _badly_named("of nothing", "", "tensor name ''"),
    _badly_named("with spaces", A0.replace(".", " "), "is not a dotted path"),
    _badly_named("with a letter that looks like another", A0.replace("a", "а", 1), "is not a dotted path"),
    _badly_named("of ten thousand letters", "base_model.model." + "a" * 10_000, "at most 32 parts and 256 characters"),
    _badly_named("of 33 parts", "base_model.model" + ".b" * 31, "at most 32 parts and 256 characters"),
    _badly_named("with half a surrogate pair", "base_model.\ud800", "half a surrogate pair"),
    _bad("a tensor's name twice", _twice, "holds the same key twice"),
)

FINE = (
    Case("fine", "tensors listed in another order", _reordered, ""),
    Case("fine", "four megabytes of metadata", header(lambda h: h.update(__metadata__={"a": "b" * (4 << 20)})), ""),
)

CASES = (*LENGTHS, *JSON, *ENTRIES, *NAMES, *FINE)
