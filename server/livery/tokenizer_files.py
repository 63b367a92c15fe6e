"""Finds what a tokenizer is made of in a model directory. Knows no request and no encoding.

Models that carry no `tokenizer.json` are converted once by transformers, in a process of its own because
that imports torch, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livery.models import cache_dir, made_once

CONVERT = """
import sys
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""
CONVERT_TIMEOUT_S = 300
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TokenizerRefused(Exception):
    """No tokenizer can be made from the model directory; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The bytes of `tokenizer.json`, the chat template (Jinja) and the tokens templates refer to by name."""

    tokenizer: bytes
    chat_template: str | None
    named_tokens: dict[str, str]


def load_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read a model's tokenizer, converting it first where needed. Raises TokenizerRefused."""
    if not (directory / "tokenizer.json").is_file():
        directory = _converted(directory)
    config = _read_json(directory / "tokenizer_config.json")
    return TokenizerFiles(
        tokenizer=(directory / "tokenizer.json").read_bytes(),
        chat_template=_chat_template(directory, config),
        named_tokens=_named_tokens({**_read_json(directory / "special_tokens_map.json"), **config}),
    )


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in NAMED_TOKENS:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _converted(directory: Path) -> Path:
    """A cached copy of the directory's tokenizer in the form of `tokenizer.json`."""
    stamps = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in directory.iterdir()]
    identity = "\n".join([str(directory.resolve()), *sorted(stamps)])
    target = cache_dir() / "tokenizers" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    return made_once(target, "tokenizer.json", lambda staging: _convert(directory, staging))


def _convert(directory: Path, target: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", CONVERT, str(directory), str(target)],
        capture_output=True,
        text=True,
        timeout=CONVERT_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0 or not (target / "tokenizer.json").is_file():
        reason = (done.stderr.strip().splitlines() or ["it has no fast form"])[-1]
        raise TokenizerRefused(
            f"{directory} has no tokenizer.json and transformers could not make one: {reason}; "
            "save the tokenizer with AutoTokenizer.from_pretrained(...).save_pretrained(...) beside the model"
        )
