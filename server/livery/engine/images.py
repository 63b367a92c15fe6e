"""An adapter's image: all its weights as one stretch of host memory, cut into the pieces that a forward uses in turn.

    | embeddings | layer 0: q/k/v | o | gate/up | down | layer 1: … | head        pieces, in the order of their layers
      each: every tensor that a projection group (or another module) needs and that no earlier piece has

One allocation per adapter is counted exactly and freed at once. On CPU it is what the kernels read. For another device
it is pinned, and each piece is copied on its own (arena.py), so that a forward can begin when the first has arrived.
"""

from __future__ import annotations

import re
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from livery.engine.kernels.group import ALIGNMENT, AdapterGroup
from livery.engine.lora.bank import PackedAdapter, Unit
from livery_adapters.canonical import field_names, leaves_of
from livery_adapters.effect import AdapterEffect
from livery_adapters.tasks import HEAD


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, start + nbytes) of an image."""

    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class AdapterImage:
    """One version in host memory. `packed` applies it from there; `memory` is uint8."""

    packed: PackedAdapter
    memory: Tensor
    pieces: tuple[Piece, ...]
    last_piece: Mapping[Unit, int]  # up to which piece a part of the model needs the image

    @property
    def digest(self) -> str:
        return self.packed.digest

    @property
    def effect(self) -> AdapterEffect:
        return self.packed.effect

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each piece."""
        return tuple(piece.nbytes for piece in self.pieces)

    def over(self, buffer: Tensor, starts: Sequence[int]) -> PackedAdapter:
        """The adapter as applied from `buffer` (uint8), where piece i begins at byte `starts[i]`; copies nothing."""
        firsts = [piece.start for piece in self.pieces]

        def moved(tensor: Tensor) -> Tensor:
            byte = _first_byte(tensor)
            piece = bisect_right(firsts, byte) - 1
            return _view(buffer, starts[piece] + byte - firsts[piece], tensor)

        return cast("PackedAdapter", _mapped(self.packed, moved))

    def copied_to(self, device: torch.device) -> PackedAdapter:
        """The adapter as applied from memory of its own on a device; from the image itself where that is there."""
        if self.memory.device == device:
            return self.packed
        return self.over(self.memory.to(device), [piece.start for piece in self.pieces])


def image_of(packed: PackedAdapter, *, paths: Sequence[str], pinned: bool) -> AdapterImage:
    """Gather what an adapter is packed into. `paths[i]` is the path of a module of projection group i.

    Memory that several modules share is in the image once.
    """
    parts = _parts(packed)
    offsets: dict[int, int] = {}  # address of a storage -> byte of the image
    sources: list[tuple[int, torch.UntypedStorage]] = []
    pieces: list[Piece] = []
    last_piece: dict[Unit, int] = {}
    end = 0
    for unit in sorted(parts, key=lambda unit: _layer(unit if isinstance(unit, str) else paths[unit])):
        start = end
        for tensor in _tensors(parts[unit]):
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in offsets:
                offsets[storage.data_ptr()] = end
                sources.append((end, storage))
                end += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        if end > start:
            pieces.append(Piece(start, end - start))
        last_piece[unit] = len(pieces) - 1
    memory = _pinned(end) if pinned else torch.empty(end, dtype=torch.uint8)
    for byte, storage in sources:
        memory[byte : byte + storage.nbytes()] = torch.empty(0, dtype=torch.uint8).set_(storage)

    def moved(tensor: Tensor) -> Tensor:
        byte = offsets.get(tensor.untyped_storage().data_ptr(), 0)
        return _view(memory, byte + _first_byte(tensor), tensor)

    return AdapterImage(cast("PackedAdapter", _mapped(packed, moved)), memory, tuple(pieces), last_piece)


def _parts(packed: PackedAdapter) -> dict[Unit, tuple[object, ...]]:
    """What each part of the model applies."""
    parts: dict[Unit, tuple[object, ...]] = {
        group: (packed.groups.get(group), packed.linears.get(group))
        for group in sorted(packed.groups.keys() | packed.linears.keys())
    }
    for others in (packed.embeddings, packed.plain, packed.experts):
        parts |= {path: (part,) for path, part in others.items()}
    return parts if packed.head is None else {**parts, HEAD: (packed.head,)}


def _layer(path: str) -> int:
    """The number of a module's layer; modules outside of layers come first."""
    number = re.search(r"\d+", path)
    return int(number.group()) if number else -1


def _tensors(part: object) -> Iterator[Tensor]:
    """Every tensor that applying a part reads."""
    for leaf in leaves_of(part):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, AdapterGroup):
            yield leaf.memory


def _mapped(part: Any, move: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401 (each comes back as its own kind)
    """The same part with other tensors; what holds none stays the object it is."""
    if isinstance(part, Tensor):
        return move(part)
    if isinstance(part, AdapterGroup):
        return part.over(move(part.memory))
    if isinstance(part, Mapping):
        return {key: _mapped(value, move) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_mapped(value, move) for value in part)
    names = field_names(type(part))
    if names and next(_tensors(part), None) is not None:
        return replace(part, **{name: _mapped(getattr(part, name), move) for name in names})
    return part


def _first_byte(tensor: Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.itemsize


def _view(buffer: Tensor, byte: int, like: Tensor) -> Tensor:
    """A tensor of the shape and layout of `like` that begins at a byte of `buffer`."""
    if like.untyped_storage().nbytes() == 0:
        return torch.empty_like(like, device=buffer.device)
    view = torch.empty(0, dtype=like.dtype, device=buffer.device)
    return view.set_(buffer.untyped_storage(), byte // like.itemsize, like.shape, like.stride())


def _pinned(nbytes: int) -> Tensor:
    """Page-locked memory of exactly this size: torch's own allocator would round it up to a power of two.

    Where the system locks no more, ordinary memory: copies from there are as right, and block the copying thread.
    """
    memory = torch.empty(nbytes, dtype=torch.uint8)
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if nbytes and int(runtime.cudaHostRegister(memory.data_ptr(), nbytes, 0)) == 0:
        weakref.finalize(memory, runtime.cudaHostUnregister, memory.data_ptr())
    return memory
