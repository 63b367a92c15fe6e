"""Trainable tokens: rows of the embedding, and of a head that is tied to it, replaced by trained ones."""

from __future__ import annotations

from dataclasses import dataclass

from livery_adapters.base_model import BaseShapes
from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, FieldRules, TargetRule, bad_field, common_settings, token_ids
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.base import PeftType, Roles, need, wrong_shape


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """The token ids in the order of the file's rows, and what `target_modules` says."""

    ids: tuple[int, ...]
    targets: TargetRule


def parse(config: Config) -> TokenSettings:
    """Validate the fields of a trainable tokens configuration. Raises AdapterRefused."""
    ids = token_ids(config.get("token_indices"), "token_indices")
    if len(set(ids)) < len(ids):
        raise bad_field("token_indices", list(ids), "a list of different token ids")
    return TokenSettings(ids, common_settings(config).targets)


def target(module: str, roles: Roles, settings: TokenSettings) -> TargetTensors:
    """Check the rows of one module: [tokens, width]. Raises AdapterRefused."""
    (rows,) = need(module, roles, "rows")
    if len(rows.shape) != 2 or rows.shape[0] != len(settings.ids) or 0 in rows.shape:
        raise wrong_shape(module, roles, f"[{len(settings.ids)}, width], a row for each of token_indices,")
    # Named, because a tied head follows the embedding whatever target_modules says; `check` knows what is tied.
    return TargetTensors(module=module, kind="rows", tensors=roles, tied=True, named=True, ids=settings.ids)


def check(target: TargetTensors, shapes: BaseShapes, settings: TokenSettings) -> None:
    """Compare ids and width with the base's vocabulary. Raises AdapterRefused."""
    if target.module not in shapes.tied and not settings.targets.covers(target.module):
        raise AdapterRefused(
            "untargeted_tensor",
            f"the file trains rows of {target.module}, which target_modules leaves out and which isn't tied to the "
            "embedding in this base (PEFT would ignore them); use the base it was trained on",
        )
    shape = shapes.modules[target.module]
    embedding = shape.kind == "embedding"
    count, width = (shape.in_features, shape.out_features) if embedding else (shape.out_features, shape.in_features)
    if target.tensors["rows"].shape[1] != width:
        raise wrong_shape(target.module, target.tensors, f"rows of {width} numbers")
    if max(settings.ids) >= count:
        raise AdapterRefused(
            "resized_vocabulary",
            f"token_indices has {max(settings.ids)} and {target.module} has {count} rows: resized vocabularies can't "
            "be served beside others; train tokens that the base has",
        )


TRAINABLE_TOKENS = PeftType(
    name="TRAINABLE_TOKENS",
    rules=FieldRules(read=frozenset({"token_indices"}), harmless=frozenset({"init_weights"})),
    suffixes={"trainable_tokens_delta": "rows"},
    prefixes=("trainable_tokens_",),
    parse=parse,
    target=target,
    check=check,
)
