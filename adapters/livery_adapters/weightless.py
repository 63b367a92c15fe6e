"""A profile over the base itself: an adapter that changes no weight, so that a prompt has a name and a history.

    # adapter_config.json, alone or beside a profile.yaml
    {"peft_type": "NONE"}

It is stored as any adapter is, beside a weights file that holds no tensor; requests for it run on the base.
"""

from __future__ import annotations

from collections.abc import Mapping

from livery_adapters.layout import AdapterManifest
from livery_adapters.peft_config import common_settings
from livery_adapters.refusal import AdapterRefused
from livery_adapters.strict_json import parse_object
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

NONE = "NONE"  # where PEFT's types stand
BASE_SOURCE = "base"  # what people name in place of a directory
CONFIG = b'{"peft_type": "NONE"}\n'
NO_HEADER = b"{}      "  # headers are filled up to eight bytes
NO_TENSORS = len(NO_HEADER).to_bytes(8, "little") + NO_HEADER  # a safetensors file
_FIELDS = frozenset({"peft_type", "base_model_name_or_path"})


def says_none(config: bytes) -> bool:
    """Whether the bytes of an adapter_config.json are those of an adapter without weights."""
    try:
        return parse_object(config, CONFIG_NAME, code="bad_json").get("peft_type") == NONE
    except AdapterRefused:
        return False


def weightless_manifest(config: Mapping[str, object], header: bytes, nbytes: int) -> AdapterManifest:
    """What the two files say, without a digest. Raises AdapterRefused (bad_field, bad_header)."""
    unknown = sorted(config.keys() - _FIELDS)
    if unknown:
        raise AdapterRefused(
            "bad_field",
            f"{CONFIG_NAME} says peft_type {NONE} and {unknown[0][:80]}: an adapter without weights has no settings; "
            f"its prompt, examples and sampling go into profile.yaml",
        )
    if header.strip() != b"{}":
        raise AdapterRefused(
            "bad_header",
            f"{CONFIG_NAME} says peft_type {NONE} and {WEIGHTS_NAME} holds tensors; remove one of the two files",
        )
    common = common_settings(config)
    return AdapterManifest("", NONE, common, None, (), {}, (), (), nbytes, {"peft_type": NONE})
