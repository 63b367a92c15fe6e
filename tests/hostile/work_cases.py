"""Small files that would cost a reader hours if it did all the work that they ask for.

How they are answered matters less than that they are: the test runs them under a limit of processor time. Each stands
just below the limits of what is read at all, or asks for what no limit but a good algorithm bounds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from hostile.base import good
from hostile.case import Build, Case, joined, write

_DEEP = "base_model.model." + ".".join(["a" * 7] * 25)  # with what follows, almost all that a name may have


def _file(names: Iterable[str], *shapes: tuple[int, ...]) -> bytes:
    """A file of these tensors, their shapes taken in turns, all ones."""
    entries: dict[str, object] = {}
    end = 0
    for index, name in enumerate(names):
        shape = shapes[index % len(shapes)]
        begin, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    return joined(json.dumps(entries, separators=(",", ":")).encode(), b"\0\0\x80\x3f" * (end // 4))


def _both(fields: dict[str, object], weights: bytes, *, kind: str = "lora") -> Build:
    def build(directory: Path) -> None:
        config = {**json.loads(good(kind)[0]), "target_modules": ".*", **fields}
        write(directory, json.dumps(config, separators=(",", ":")).encode(), weights)

    return build


def _words(count: int) -> list[str]:
    return [f"{number:x}" for number in range(count)]


def _lora(count: int, path: str) -> bytes:
    """Pairs that fit each other, on modules that no base has."""
    names = [f"{path}.{number}.lora_{half}.weight" for number in range(count) for half in "AB"]
    return _file(names, (4, 1), (1, 4))


def _work(name: str, build: Build, code: str, says: str = "") -> Case:
    return Case("work", name, build, code, says)


# Repetitions that keep nearly every place of a name possible, in nearly as many characters as there may be.
_REPEATING = {"|".join(f"{'a*.' * 15}b{letter}" for letter in "cdefghij"): 4, "|".join(["a+.+a.+a"] * 8): 4}
# Names that differ in their first characters only.
_NAMES = {f"{n:03x}{'.aaaaaaa' * 7}": 4 for n in range(1000)}
CASES = (
    _work(
        "120,000 modules_to_save, 6,000 deep tensors",
        _both({"modules_to_save": _words(120_000)}, _file((f"{_DEEP}.{n}.weight" for n in range(6000)), (1,))),
        "no_matching_module",
    ),
    _work(
        "120,000 layers_pattern, 3,000 deep modules",
        _both(
            {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": _words(120_000)},
            _lora(3000, _DEEP + ".q"),
        ),
        "untargeted_tensor",
    ),
    _work(
        "repetitions in 500 characters, 3,000 deep modules",
        _both({"rank_pattern": _REPEATING, "alpha_pattern": _REPEATING}, _lora(3000, _DEEP)),
        "no_matching_module",
    ),
    _work(
        "1,000 names in rank_pattern, 3,000 deep modules",
        _both({"rank_pattern": _NAMES, "alpha_pattern": _NAMES}, _lora(3000, _DEEP)),
        "no_matching_module",
    ),
    _work(
        "12,000 alternatives, 800 deep modules",
        _both(
            {"rank_pattern": {"|".join(f"{n:x}" for n in range(k, k + 100)): 4 for k in range(0, 12_000, 100)}},
            _lora(800, _DEEP),
        ),
        "unsafe_pattern",
        "over 1024 alternatives",
    ),
    _work(
        "120,000 trained tokens, the last one twice",
        _both({"trainable_token_indices": [*range(120_000), 119_999]}, good()[1]),
        "bad_field",
        "119999 twice",
    ),
    _work(
        "8,000 target_parameters, 3,000 modules",
        _both({"target_parameters": _words(8000)}, _lora(3000, "base_model.model.a")),
        "bad_field",
        "target_parameters has 8000 entries",
    ),
    _work(
        "256 target_parameters, 3,000 deep modules",
        _both({"target_parameters": [f"a.{word}" for word in _words(256)]}, _lora(3000, _DEEP)),
        "no_matching_module",
    ),
    _work(
        "5,000 embeddings of trained tokens, 3,000 modules",
        _both(
            {"trainable_token_indices": {word: [] for word in _words(5000)}},
            _file((f"base_model.model.a.{n}.token_adapter.trainable_tokens_delta" for n in range(3000)), (0, 1)),
        ),
        "bad_field",
        "trainable_token_indices has 5000 entries",
    ),
    _work(
        "120,000 feedforward_modules, 4,000 modules",
        _both(
            {"feedforward_modules": _words(120_000)},
            _file((f"base_model.model.a.{n}.ia3_l" for n in range(4000)), (2, 1)),
            kind="ia3",
        ),
        "wrong_shape",
    ),
    _work(
        "36,000 tensors", _both({}, _lora(18_000, "base_model.model.model.layers.0.mlp.experts")), "no_matching_module"
    ),
)
