"""Servers that clients are let loose on: `livery serve` in a process of its own, over small models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api.peft_files import make_adapter
from livery.models import resolve_model
from server.running import livery_serve, tiny_model

DEMO_MODEL = "smollm2-135m-instruct"
DEMO_ADAPTERS = Path(__file__).parents[2] / "adapters" / "demo"
TINY_NAME = "tiny"
TOOLS = ("--tool-parser", "hermes")  # the demo model's template has no place for tools
MAX_LEN = "1536"  # clients that set no limit to an answer get one all the same; some ask for 1024 tokens


@contextmanager
def serving(kind: str, flags: tuple[str, ...], folder: Path) -> Iterator[dict[str, str]]:
    """Start a server of a kind (a column of environments.toml); yields what its clients find in their environment."""
    name, model, adapters = _demo() if kind == "demo" else _tiny(folder)
    more = ("--served-model-name", name, "--max-model-len", MAX_LEN if kind == "demo" else "0", *TOOLS, *flags)
    with livery_serve(model, adapters, folder, *more) as server:
        names = sorted(file.parent.name for file in adapters.glob("*/adapter_config.json"))
        yield {
            "LIVERY_URL": server.url,
            "LIVERY_BASE": name,
            "LIVERY_ADAPTERS": ",".join(names),
            "LIVERY_MODEL_FOLDER": str(model),
            "LIVERY_ADAPTER_FOLDER": str(adapters),
        }


def _demo() -> tuple[str, Path, Path]:
    return DEMO_MODEL, resolve_model(DEMO_MODEL).path, DEMO_ADAPTERS


def _tiny(folder: Path) -> tuple[str, Path, Path]:
    """The random model has hidden size 32 and 2 layers; adapters fit its attention."""
    adapters = folder / "adapters"
    for seed, name in enumerate(("one", "two")):
        make_adapter(adapters / name, seed=seed, hidden=32)
    return TINY_NAME, tiny_model(folder / TINY_NAME), adapters
