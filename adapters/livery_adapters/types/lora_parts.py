"""The pieces a LoRA file may hold for one module: a pair, DoRA's magnitude, token rows, experts' pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from livery_adapters.base_model import BaseShapes
from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import module_names, too_many
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import TensorEntry
from livery_adapters.types.base import Roles, is_pair, need, one_dtype, wrong_shape

_NESTED = ".base_layer"
_MAX_PARAMETERS = 256  # two for each layer of the largest models


def pair(module: str, roles: Roles, embedding: bool) -> tuple[TensorEntry, TensorEntry]:
    """A [rank, in] and B [out, rank] of one module. Raises AdapterRefused."""
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    a, b = need(module, roles, *names)
    if not is_pair(a, b):
        raise wrong_shape(module, {name: roles[name] for name in names}, "[rank, in] and [out, rank]")
    one_dtype(module, {name: roles[name] for name in names})
    return a, b


def rank_mismatch(module: str, found: int, declared: int, matching: Sequence[str] = ()) -> AdapterRefused:
    """The two files disagree about a rank. `matching` are the rank patterns that fit the module."""
    if len(matching) > 1:
        return AdapterRefused(
            "rank_mismatch",
            f"{module}: the tensors have rank {found}; {matching[0]!r} of rank_pattern says {declared} and "
            f"{matching[1]!r} matches too. PEFT sorts the patterns when it saves and then can't load them: put the one "
            "that was meant first in adapter_config.json",
        )
    return AdapterRefused(
        "rank_mismatch",
        f"{module}: the tensors have rank {found} and adapter_config.json says {declared} (r or rank_pattern); the "
        "two files don't belong together",
    )


def check_variant(module: str, roles: Roles, embedding: bool, dora: bool, bias: bool, activated: bool) -> None:
    """The tensors of DoRA and of lora_bias are there if, and only if, the configuration says so."""
    known = {"lora_embedding_A", "lora_embedding_B"} if embedding else {"lora_A", "lora_B"}
    if embedding and (bias or activated):
        raise AdapterRefused(
            "unsupported_combination",
            f"{module} is an embedding, and PEFT has no {'lora_bias' if bias else 'activated LoRA'} for embeddings",
        )
    out = roles.get("lora_embedding_B" if embedding else "lora_B")
    for role, switch, name in (("magnitude", dora, "use_dora"), ("lora_B_bias", bias, "lora_bias")):
        if switch:
            known.add(role)
            (entry,) = need(module, roles, role)
            if out is not None and len(out.shape) == 2 and entry.shape != (out.shape[0],):
                raise wrong_shape(module, {"lora_B": out, role: entry}, "[out, rank] and [out]")
        elif role in roles:
            raise AdapterRefused(
                "unknown_tensor",
                f"{roles[role].name} is in the file and {name} is not true in adapter_config.json; PEFT would ignore "
                "it: the two files don't belong together",
            )
    extra = next((role for role in roles if role not in known), None)
    if extra is not None:
        raise AdapterRefused(
            "unknown_tensor", f"{roles[extra].name} doesn't go with the other tensors of {module}; save it again"
        )


# -- trained tokens --------------------------------------------------------------------------------------


def token_rows(module: str, roles: Roles, ids: tuple[int, ...]) -> TargetTensors:
    """Rows of an embedding or a head that replace the base's: one per token id, [tokens, width]."""
    entry = roles["trainable_tokens"]
    if len(roles) > 1:
        raise AdapterRefused(
            "unsupported_combination",
            f"{module} has trained tokens and a low-rank pair, which PEFT itself doesn't combine; train one of them",
        )
    if len(entry.shape) != 2 or entry.shape[0] != len(ids) or not ids:
        raise AdapterRefused(
            "wrong_shape",
            f"{entry.name} is {list(entry.shape)} and adapter_config.json names {len(ids)} trained tokens for it; the "
            "two files don't belong together",
        )
    return TargetTensors(module=module, kind="rows", tensors=roles, named=True, tied=True, ids=ids)


def check_rows(
    target: TargetTensors, shapes: BaseShapes, ids: tuple[int, ...], named: Mapping[str, tuple[int, ...]]
) -> None:
    """Do width and token ids fit the base? Raises AdapterRefused."""
    shape = shapes.modules[target.module]
    rows, width = shape.in_features, shape.out_features
    if shape.kind == "linear":
        rows, width = width, rows
    entry = target.tensors["trainable_tokens"]
    if entry.shape[1] != width:
        raise AdapterRefused("wrong_shape", f"{entry.name} has rows of {entry.shape[1]} and the base's have {width}")
    if ids and max(ids) >= rows:
        raise AdapterRefused(
            "resized_vocabulary",
            f"trainable_token_indices trains token {max(ids)} and the base's vocabulary has {rows} rows: resized "
            "vocabularies can't be served; train tokens that the base has",
        )
    if "" in named and shape.kind != "embedding" and target.module not in shapes.tied:
        raise AdapterRefused(
            "untargeted_tensor",
            f"trainable_token_indices is a list, which trains the input embedding, and the file has {entry.name}; "
            "the two files don't belong together",
        )


# -- parameters (experts) --------------------------------------------------------------------------------


def parameter_names(value: object) -> dict[str, tuple[str, ...]]:
    """The names of parameters by the end of their module's path. Raises AdapterRefused."""
    names = module_names(value, "target_parameters")
    if len(names) > _MAX_PARAMETERS:
        raise too_many("target_parameters", len(names), _MAX_PARAMETERS)
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        module, _, parameter = name.rpartition(".")
        found[module] = (*found.get(module, ()), parameter)
    return found


def parameter_of(path: str, names: Mapping[str, tuple[str, ...]]) -> tuple[str, str] | None:
    """Which parameter of which module the tensors at `path` adapt, or None where no name fits.

    PEFT wraps a module once per adapted parameter, in the order in which the module defines them, and the file
    shows only how deep a wrapper lies: ".base_layer" once per further wrapper outside of it. Modules define the
    projection to the inside of an expert before the one back, which is also the order of names from g(ate), u(p)
    and w1 to d(own) and w2; the shapes are compared with the base afterwards, and the two never agree.
    """
    module, depth = path, 0
    while module.endswith(_NESTED):
        module, depth = module.removesuffix(_NESTED), depth + 1
    # A bare parameter's name, under no end at all, would fit every module: so the module is to be called experts.
    ends = [module[at:] for at in _starts(module)] + ([""] if module.rpartition(".")[2] == "experts" else [])
    found = {name for end in ends for name in names.get(end, ())}
    ordered = sorted(found, key=lambda name: ("down" in name or name.endswith("w2"), name))
    if depth >= len(ordered):
        return None
    return module, ordered[len(ordered) - 1 - depth]


def _starts(path: str) -> list[int]:
    """Where the parts of a path begin."""
    return [0, *(index + 1 for index, char in enumerate(path) if char == ".")]


def parameter_pair(
    module: str,
    parameter: str,
    roles: Roles,
    rank_of: Callable[[str], int],
    scale_of: Callable[[str, int], float],
) -> TargetTensors:
    """The pairs of all experts, stacked: A [experts · rank, in] and B [out, rank · experts]; or one plain pair."""
    path = f"{module}.{parameter}"
    a, b = pair(path, roles, embedding=False)
    check_variant(path, roles, embedding=False, dora=False, bias=False, activated=False)
    rank = rank_of(path)
    one = parameter == "weight"
    if a.shape[0] % rank or (one and a.shape[0] != rank):
        raise rank_mismatch(path, a.shape[0], rank)
    return TargetTensors(
        module=module,
        kind="linear" if one else "experts",
        tensors=roles,
        rank=rank,
        scale=scale_of(path, rank),
        in_features=a.shape[1],
        out_features=b.shape[0],
        parameter="" if one else parameter,
        named=True,
    )


def check_experts(target: TargetTensors, shapes: BaseShapes) -> None:
    """Do the number of experts and their features fit the base? Raises AdapterRefused."""
    shape = shapes.experts[target.path]
    experts = target.tensors["lora_A"].shape[0] // target.rank
    mine = (experts, target.in_features, target.out_features)
    if mine != (shape.experts, shape.in_features, shape.out_features):
        raise AdapterRefused(
            "wrong_shape",
            f"{target.path} is adapted as {experts} experts of {target.in_features} -> {target.out_features} and the "
            f"base has {shape.experts} of {shape.in_features} -> {shape.out_features}; r or rank_pattern may be wrong, "
            "or it was trained on another base",
        )
