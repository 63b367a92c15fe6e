"""OFT and BOFT: the input of a module is turned by orthogonal blocks before the base's weight sees it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from livery_adapters.base_model import BaseShapes
from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, FieldRules, bad_field, flag, number, shown, whole
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.base import PeftType, Roles, need, one_dtype, wrong_shape

_MOST_TERMS = 16
_RETRAIN = "save it with the PEFT it was trained with as a merged model, or train it again with a newer one"


@dataclass(frozen=True, slots=True)
class OftSettings:
    """`terms` of the Neumann series, 0 for the exact Cayley transform; `radius` of constrained OFT, or None.

    One of `blocks` and `block_size` is zero: PEFT derives it from the module's width.
    """

    blocks: int
    block_size: int
    shared: bool
    terms: int
    radius: float | None

    def size_in(self, features: int) -> int:
        """The size of a block in a module with so many inputs, moved to the next divisor as PEFT does."""
        if self.block_size:
            return _nearest_divisor(features, self.block_size)
        return features // _nearest_divisor(features, self.blocks)


def _nearest_divisor(features: int, wanted: int) -> int:
    """The divisor nearest to `wanted`, the smaller one of two at the same distance."""
    if wanted >= features:
        return features
    above = next(number for number in range(wanted, features + 1) if features % number == 0)
    below = next(number for number in range(wanted, 0, -1) if features % number == 0)
    return below if wanted - below <= above - wanted else above


def parse_oft(config: Config) -> OftSettings:
    """Validate the fields of an OFT configuration. Raises AdapterRefused."""
    if "oft_block_size" not in config:
        raise AdapterRefused(
            "unsupported_field",
            f"oft_block_size is missing: these weights are from PEFT before 0.14, which turned outputs; {_RETRAIN}",
        )
    blocks = whole(config.get("r", 0), "r", least=0)
    size = whole(config["oft_block_size"], "oft_block_size", least=0)
    if (blocks == 0) == (size == 0):
        raise AdapterRefused(
            "bad_field",
            f"r is {blocks} and oft_block_size is {size}: one of them must be zero; fix adapter_config.json",
        )
    series = flag(config, "use_cayley_neumann", default=True)
    terms = whole(config.get("num_cayley_neumann_terms", 5), "num_cayley_neumann_terms") if series else 0
    if terms > _MOST_TERMS:
        raise bad_field("num_cayley_neumann_terms", terms, f"at most {_MOST_TERMS}")
    if series:
        _check_version(config.get("peft_version"))
    return OftSettings(
        blocks=blocks,
        block_size=size,
        shared=flag(config, "block_share"),
        terms=terms,
        radius=number(config.get("eps", 6e-5), "eps") if flag(config, "coft") else None,
    )


def _check_version(version: object) -> None:
    """PEFT 0.18 changed the series, and began to write down its version."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})(\.|$)", version) if isinstance(version, str) else None
    if found is None or (int(found[1]), int(found[2])) < (0, 18):
        raise AdapterRefused(
            "unsupported_field",
            f"use_cayley_neumann is true and peft_version is {shown(version)}: PEFT computes this series differently "
            f"since 0.18, so that these weights would be misread; {_RETRAIN}",
        )


def oft_target(module: str, roles: Roles, settings: OftSettings) -> TargetTensors:
    """Check the blocks of one module: [blocks, size·(size-1)/2]. Raises AdapterRefused."""
    embedding = "oft_embedding_R" in roles
    (entry,) = need(module, roles, "oft_embedding_R" if embedding else "oft_R")
    size = block_size(entry.shape[1]) if len(entry.shape) == 2 else 0
    if not size or entry.shape[0] < 1 or (settings.shared and entry.shape[0] != 1):
        raise wrong_shape(module, roles, "[blocks, size·(size-1)/2]" + (", one block," if settings.shared else ""))
    turned = None if settings.shared else entry.shape[0] * size
    return TargetTensors(
        module=module,
        kind="embedding" if embedding else "linear",
        tensors=roles,
        in_features=None if embedding else turned,
        out_features=turned if embedding else None,
    )


def block_size(entries: int) -> int:
    """The size of a skew-symmetric block with so many entries above its diagonal; 0 where no size has as many."""
    size = (1 + math.isqrt(1 + 8 * entries)) // 2
    return size if size > 1 and size * (size - 1) // 2 == entries else 0


def check_oft(target: TargetTensors, shapes: BaseShapes, settings: OftSettings) -> None:
    """The blocks must be those that the configuration means for this width. Raises AdapterRefused."""
    shape = shapes.modules[target.module]
    features = shape.out_features if target.kind == "embedding" else shape.in_features
    (entry,) = target.tensors.values()
    if block_size(entry.shape[1]) != settings.size_in(features):
        raise AdapterRefused(
            "wrong_shape",
            f"{target.module}: the blocks are of size {block_size(entry.shape[1])} and adapter_config.json says "
            f"{settings.size_in(features)} for {features} features (r or oft_block_size); the two files don't belong "
            "together",
        )


@dataclass(frozen=True, slots=True)
class BoftSettings:
    """`factors` of the butterfly at most: PEFT makes do with one where its CUDA extension doesn't build."""

    factors: int


def parse_boft(config: Config) -> BoftSettings:
    """Validate the fields of a BOFT configuration. Raises AdapterRefused."""
    return BoftSettings(whole(config.get("boft_n_butterfly_factor", 1), "boft_n_butterfly_factor"))


def boft_target(module: str, roles: Roles, settings: BoftSettings) -> TargetTensors:
    """Check the factors [factors, blocks, size, size] and the scale [out, 1]. Raises AdapterRefused."""
    factors, gain = need(module, roles, "boft_R", "boft_s")
    needed = f"[factors, blocks, size, size], of one factor or {settings.factors}, and [out, 1]"
    if len(factors.shape) != 4 or len(gain.shape) != 2 or gain.shape[1] != 1 or 0 in factors.shape + gain.shape:
        raise wrong_shape(module, roles, needed)
    count, blocks, rows, columns = factors.shape
    if rows != columns or count not in (1, settings.factors):
        raise wrong_shape(module, roles, needed)
    if count > 1 and (rows % 2 or count > 32 or blocks % (1 << (count - 1))):
        raise wrong_shape(module, roles, "an even size and blocks in multiples of two to the factors less one")
    one_dtype(module, roles)
    return TargetTensors(
        module=module, kind="linear", tensors=roles, in_features=blocks * rows, out_features=gain.shape[0]
    )


OFT = PeftType(
    name="OFT",
    rules=FieldRules(
        read=frozenset(
            {
                "r",
                "oft_block_size",
                "block_share",
                "coft",
                "eps",
                "use_cayley_neumann",
                "num_cayley_neumann_terms",
                "peft_version",
            }
        ),
        harmless=frozenset({"module_dropout", "init_weights"}),
    ),
    suffixes={"oft_R.weight": "oft_R", "oft_embedding_R.weight": "oft_embedding_R"},
    prefixes=("oft_",),
    parse=parse_oft,
    target=oft_target,
    check=check_oft,
)
BOFT = PeftType(
    name="BOFT",
    rules=FieldRules(
        read=frozenset({"boft_n_butterfly_factor"}),
        harmless=frozenset({"boft_block_size", "boft_block_num", "boft_dropout", "init_weights"}),
    ),
    suffixes={"boft_R": "boft_R", "boft_s": "boft_s"},
    prefixes=("boft_",),
    parse=parse_boft,
    target=boft_target,
)
