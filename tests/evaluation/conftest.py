"""A tiny model with the demo base's tokenizer, and adapters over it, for everything that is evaluated here."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig

from engine.oracle import save_adapter
from server.running import tiny_model

ADAPTERS = {"one": (1, 2), "two": (2, 4), "three": (3, 8)}  # seed and rank


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters that visibly move the model."""
    root = tmp_path_factory.mktemp("adapters")
    for name, (seed, rank) in ADAPTERS.items():
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "down_proj"])
        save_adapter(tiny, root / name, seed, config)
    return root
