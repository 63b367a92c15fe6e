"""Tokenizers like those of Llama and Gemma, whose models expect a BOS before any text; the demo base's expects none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from livery.models import DEMO_MODEL, resolve_model
from livery.text import Tokenizer
from server.running import TOKENIZER_FILES


def expect_bos(folder: Path, token: str = "<|im_start|>") -> None:
    """The model in `folder` expects this token of its vocabulary before any text."""
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text())
    (number,) = (one["id"] for one in fields["added_tokens"] if one["content"] == token)
    text = {"Sequence": {"id": "A", "type_id": 0}}
    fields["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, text],
        "pair": [{"SpecialToken": {"id": token, "type_id": 0}}, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
    file.write_text(json.dumps(fields))


def tokenizer_with_bos(folder: Path) -> Tokenizer:
    """The demo base's, of a model that expects one."""
    for name in TOKENIZER_FILES:
        shutil.copy(resolve_model(DEMO_MODEL).path / name, folder / name)
    expect_bos(folder)
    return Tokenizer.from_directory(folder)
