"""The formats of tool calls by name, and how one is chosen. A new one is a module beside this one and a word here."""

from __future__ import annotations

from functools import lru_cache

from livery.tools.events import ToolFormat
from livery.tools.hermes import Hermes
from livery.tools.llama3 import Llama3
from livery.tools.mistral import Mistral
from livery.tools.phi import Phi
from livery.tools.qwen3_coder import Qwen3Coder

FORMATS: dict[str, ToolFormat] = {form.name: form for form in (Hermes(), Llama3(), Mistral(), Phi(), Qwen3Coder())}
AUTO, NONE = "auto", "none"
NAMES = (AUTO, NONE, *FORMATS)


@lru_cache(64)
def format_of(name: str, template: str | None) -> ToolFormat | None:
    """The format of that name; with "auto" the one that the chat template is written in, None where there is none.

    Raises KeyError for a name that isn't among NAMES.
    """
    if name == AUTO:
        return next((form for form in FORMATS.values() if template and form.recognises(template)), None)
    return None if name == NONE else FORMATS[name]
