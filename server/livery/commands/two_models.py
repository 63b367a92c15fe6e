"""A base and a model tuned from it, looked at before anything is taken apart: do they belong together, as far as their
configurations, tokenizers and model cards tell? Needs torch and transformers.

    models = together(resolve_model("smollm2"), resolve_model("my-tuned"))
    models.shapes, models.beside, models.warnings
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedConfig

from livery.engine.model import base_shapes
from livery.models import ResolvedModel, eos_token_ids
from livery.tokenizer_files import load_tokenizer_files
from livery_adapters.base_model import BaseShapes
from livery_adapters.beside import (
    BESIDE_LIMITS,
    TEMPLATE_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    BaseText,
    compare,
)
from livery_adapters.model_files import json_object
from livery_adapters.refusal import AdapterRefused
from livery_adapters.vocabulary import TokenizerDiffers, content

_LENGTH = "max_position_embeddings"
# Fields of a configuration that leave the forward alone, or say what the weights themselves show.
_BOOKKEEPING = frozenset(
    {
        *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "tie_word_embeddings", "initializer_range"),
        *("id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states"),
        *("chunk_size_feed_forward", "gradient_checkpointing", "router_aux_loss_coef", "output_router_logits"),
        *("pretraining_tp", _LENGTH, "n_positions", "n_ctx", "auto_map", "task_specific_params"),
        *("use_bfloat16", "is_decoder", "is_encoder_decoder", "max_window_layers"),
    }
)
_GENERAL = frozenset({"model_type", "per_layer_config", "quantization_config"})  # what any class may have that computes
_TEXT_FILES = (TEMPLATE_NAME, TOKENIZER_NAME, TOKENIZER_CONFIG_NAME)


@dataclass(frozen=True, slots=True)
class TwoModels:
    """What is known of both: the base's shapes, whose heads are their embeddings, and what else a user should know.

    `beside` are files of the tuned model that say how it reads text, where they differ from the base's.
    """

    shapes: BaseShapes
    base_tied: bool
    tuned_tied: bool
    beside: Mapping[str, bytes]
    warnings: tuple[str, ...]


def together(base: ResolvedModel, tuned: ResolvedModel) -> TwoModels:
    """Raises AdapterRefused (different_model), ModelRefused, OSError."""
    one, other = _config(base.path), _config(tuned.path)
    _check_kind(base, tuned, one, other)
    warnings = _check_swapped(base, tuned)
    warnings += _check_fields(one, other)
    warnings += _reads(base.path, tuned.path, one, other)
    beside = _beside(base.path, tuned.path, warnings)
    shapes = base_shapes(str(base.path))
    return TwoModels(shapes, bool(shapes.tied), _is_tied(other), beside, tuple(warnings))


def _config(path: Path) -> Any:  # noqa: ANN401  (each family has a class of its own)
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise AdapterRefused("bad_model", f"{path} has no configuration that transformers reads: {error}") from error


def _is_tied(config: Any) -> bool:  # noqa: ANN401
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def _check_kind(base: ResolvedModel, tuned: ResolvedModel, one: Any, other: Any) -> None:  # noqa: ANN401
    if one.model_type != other.model_type:
        raise AdapterRefused(
            "different_model",
            f"{tuned.name} is of the type {other.model_type!r} and {base.name} of {one.model_type!r}: what they differ "
            "in is no adapter; give the base that the tuned model was trained from",
        )


def _check_fields(one: Any, other: Any) -> list[str]:  # noqa: ANN401
    """Fields that change what a model computes with the same weights. Raises AdapterRefused.

    Warns of differences in what the class of a configuration doesn't know: notes of whoever trained or saved it.
    """
    notes = []
    for path, known, before, after in _differences(one, other):
        if known:
            raise AdapterRefused(
                "different_model",
                f"{path} of config.json is {before!r} in the base and {after!r} in the tuned model: they compute "
                "different things with the same weights, which an adapter can't carry; serve the tuned model by "
                "itself, or use it as the base",
            )
        notes.append(f"{path} is {before!r} in the base and {after!r} in the tuned model")
    if not notes:
        return []
    return [
        f"config.json has fields that {type(one).__name__} of transformers doesn't know, taken for notes that change "
        f"nothing of what is computed: {'; '.join(notes)}"
    ]


def _differences(one: Any, other: Any, inside: str = "") -> Iterator[tuple[str, bool, object, object]]:  # noqa: ANN401
    """(field, whether its class knows it, in one, in the other) of what is more than bookkeeping, nested ones too."""
    before, after = one.to_dict(), other.to_dict()
    known = _known(type(one))
    for name in sorted({*before, *after} - _BOOKKEEPING):
        nested = getattr(one, name, None), getattr(other, name, None)
        if all(isinstance(part, PreTrainedConfig) for part in nested):
            yield from _differences(*nested, f"{inside}{name}.")
        elif before.get(name) != after.get(name) and not name.endswith(("dropout", "_pdrop")):
            yield f"{inside}{name}", name in known, before.get(name), after.get(name)


def _known(kind: type[PreTrainedConfig]) -> set[str]:
    """The fields that a class of configurations declares, and those that it works out from them."""
    names = {*inspect.signature(kind.__init__).parameters, *_GENERAL}
    with suppress(Exception):  # those of a few classes make no sense without values
        names |= kind().to_dict().keys()
    return names


def _reads(base: Path, tuned: Path, one: Any, other: Any) -> list[str]:  # noqa: ANN401
    """What the base decides for whatever is served beside it, where the two differ in it. Raises AdapterRefused."""
    found = []
    before, after = (getattr(config.get_text_config(), _LENGTH, None) for config in (one, other))
    if before != after:
        found.append(
            f"{_LENGTH} is {before} in the base and {after} in the tuned model: served beside the base it has the "
            "base's limit"
        )
    ends, tuned_ends = _ends(base), _ends(tuned)
    if set(ends) != set(tuned_ends):
        found.append(
            f"the tuned model's answers end with {_in_words(tuned_ends, tuned)} and the base's with "
            f"{_in_words(ends, base)}: served beside the base they end where the base's do, unless its profile has "
            "stops"
        )
    return found


def _ends(path: Path) -> tuple[int, ...]:
    """The tokens at which a server of this model ends its answers. Raises AdapterRefused."""
    try:
        return eos_token_ids(path)
    except ValueError:
        raise AdapterRefused(
            "bad_model", f"generation_config.json or config.json in {path} is no JSON; copy it again"
        ) from None


def _in_words(ids: tuple[int, ...], path: Path) -> str:
    tokenizer = None
    with suppress(Exception):  # it is optional, and tokenizers raises nothing narrower
        tokenizer = Tokenizer.from_file(str(path / TOKENIZER_NAME))
    words = ((token, tokenizer.id_to_token(token) if tokenizer else None) for token in ids)
    return ", ".join(f"{word} ({token})" if word else f"token {token}" for token, word in words) or "no token"


def _check_swapped(base: ResolvedModel, tuned: ResolvedModel) -> list[str]:
    """A model that says it was made from the other one is the tuned one. Raises AdapterRefused.

    A warning where neither says so: the difference of two models is an adapter either way round.
    """
    if tuned.path.resolve() == base.path.resolve():
        raise AdapterRefused("nothing_differs", f"--base and --tuned are both {base.path}; name two models")
    known = _names(tuned.path, base)
    if _names(base.path, tuned) and not known:
        raise AdapterRefused(
            "different_model",
            f"{base.path} says that it was made from {tuned.name}: --base and --tuned are swapped; give them the other "
            "way round",
        )
    if known:
        return []
    return [
        f"neither {tuned.name} nor {base.name} says in its model card or config.json that it was made from the other: "
        "swapped, they give an adapter all the same, which undoes the tuning; --text shows which one knows your text"
    ]


def _names(path: Path, other: ResolvedModel) -> bool:
    """Whether a model's configuration or card names another one as what it was made from."""
    told = [json_object(path / "config.json").get("_name_or_path")]
    card = path / "README.md"
    if card.is_file():
        front = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        try:
            facts = yaml.safe_load(front[1]) if len(front) == 3 and not front[0].strip() else {}
        except yaml.YAMLError:
            facts = {}
        named = facts.get("base_model") if isinstance(facts, dict) else None
        told += named if isinstance(named, list) else [named]
    ours = {_last(other.name), _last(str(other.path))}
    return any(isinstance(one, str) and _last(one) in ours for one in told)


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _beside(base: Path, tuned: Path, warnings: list[str]) -> dict[str, bytes]:
    """The tuned model's own way of reading text, where it differs from the base's. Raises AdapterRefused."""
    own = {name: (tuned / name).read_bytes() for name in _TEXT_FILES if _fits(tuned / name)}
    sides = (("base", base, (base / TOKENIZER_NAME).is_file()), ("tuned model", tuned, TOKENIZER_NAME in own))
    for side, folder, usable in sides:
        if not usable:
            warnings.append(_unchecked(side, folder / TOKENIZER_NAME))
    if not all(usable for _, _, usable in sides):
        return {}
    files = load_tokenizer_files(base)
    _check_vocabulary(files.tokenizer, own[TOKENIZER_NAME])
    found = compare(own, BaseText(files.tokenizer, files.chat_template, files.named_tokens.get("eos_token")))
    if "tokenizer" in found:
        warnings.append(
            f"the tuned model's tokenizer differs from the base's ({found['tokenizer']}); served beside the base it "
            "reads text as the base does"
        )
        del own[TOKENIZER_NAME]
    if files.chat_template and "chat_template" not in found:
        warnings.append("the base has a chat template and the tuned model none: are --base and --tuned swapped?")
    wanted = {
        TOKENIZER_NAME: bool(found.get("added_tokens")),
        TEMPLATE_NAME: bool(found.get("chat_template")),
        TOKENIZER_CONFIG_NAME: bool(found.get("chat_template")),
    }
    return {name: data for name, data in own.items() if wanted[name]}


def _unchecked(side: str, file: Path) -> str:
    """Why the vocabularies of two models can't be compared."""
    most = BESIDE_LIMITS[TOKENIZER_NAME]
    why = f"is larger than {most // 2**20} MiB" if file.is_file() else "isn't there"
    return (
        f"whether both have the same vocabulary is not checked: the {side}'s {file} {why}. Where ids mean other words, "
        "the adapter is of no use"
    )


def _fits(file: Path) -> bool:
    return file.is_file() and file.stat().st_size <= BESIDE_LIMITS[file.name]


def _check_vocabulary(base: bytes, tuned: bytes) -> None:
    """The words of the base mean the same ids in the tuned model. Raises AdapterRefused."""
    try:
        one, other = content(base).get("model"), content(tuned).get("model")
    except TokenizerDiffers as unreadable:
        raise AdapterRefused("bad_model", f"a {TOKENIZER_NAME} can't be compared: {unreadable}") from None
    if isinstance(one, dict) and isinstance(other, dict) and one.get("vocab") != other.get("vocab"):
        raise AdapterRefused(
            "different_model",
            "the tuned model has another vocabulary than the base: the same ids mean different words; tokens may be "
            "added behind the base's, and none exchanged. Serve the tuned model by itself",
        )
