"""Manifests of stored versions: what adapters of one recipe share is parsed once, and nothing goes unchecked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig

from engine.families import LLAMA_LINEAR, save
from engine.oracle import save_adapter
from livery.engine import stored
from livery.engine.base import AdapterPart
from livery.engine.model import base_shapes
from livery.engine.stored import StoredManifests
from livery_adapters.base_model import BaseModel
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import TAKEN_IN, AdapterRefused


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(base: Path) -> BaseModel:
    return BaseModel("tiny", "0" * 64, base_shapes(str(base)))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of one recipe, and one of another rank."""
    folder = tmp_path_factory.mktemp("adapters")
    configs = [LoraConfig(r=rank, target_modules=LLAMA_LINEAR, task_type="CAUSAL_LM") for rank in (4, 4, 2)]
    return [save_adapter(base, folder / str(seed), seed, config) for seed, config in enumerate(configs)]


def part(adapter: Path, verified: bool = False) -> AdapterPart:
    return AdapterPart(read_manifest(adapter).digest, str(adapter), verified=verified)


def test_adapters_of_one_recipe_share_what_their_headers_say(model: BaseModel, adapters: list[Path]) -> None:
    manifests = StoredManifests(model)
    first, second, other = (manifests.read(part(adapter)) for adapter in adapters)
    assert first.targets is second.targets
    assert first.digest != second.digest
    assert [target.rank for target in (first.targets[0], other.targets[0])] == [4, 2]
    for adapter, found in zip(adapters, (first, second, other), strict=True):
        assert found == read_manifest(adapter)
        assert manifests.read(part(adapter, verified=True)) == found


@pytest.mark.parametrize("known", [False, True])
def test_files_are_hashed_however_well_their_header_is_known(
    known: bool, model: BaseModel, adapters: list[Path], tmp_path: Path
) -> None:
    manifests, asked = StoredManifests(model), part(adapters[0])
    if known:
        manifests.read(asked)
    shutil.copytree(adapters[0], tmp_path / "copy")
    weights = tmp_path / "copy" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # of the numbers, not of the header
    weights.write_bytes(data)
    with pytest.raises(AdapterRefused, match="hash to"):
        manifests.read(AdapterPart(asked.digest, str(tmp_path / "copy")))
    data[40] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AdapterRefused):
        manifests.read(AdapterPart(asked.digest, str(tmp_path / "copy"), verified=True))


def test_what_was_taken_in_is_read_however_large_it_is(model: BaseModel, tmp_path: Path) -> None:
    """A file with a hole of 2 GiB in it, and a rank beyond what is usual."""
    rank, path = (8 << 20) + 1, "base_model.model.model.layers.0.self_attn.q_proj"
    shape = model.shapes.modules["model.layers.0.self_attn.q_proj"]
    config = LoraConfig(r=rank, target_modules=["q_proj"], layers_to_transform=[0], task_type="CAUSAL_LM")
    config.save_pretrained(tmp_path)
    header, end = {}, 0
    for half, sizes in (("lora_A", [rank, shape.in_features]), ("lora_B", [shape.out_features, rank])):
        begin, end = end, end + 4 * sizes[0] * sizes[1]
        header[f"{path}.{half}.weight"] = {"dtype": "F32", "shape": sizes, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    with (tmp_path / "adapter_model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + end)
    assert end > 2 << 30
    with pytest.raises(AdapterRefused, match="the limit is 2147483648; raise --max-adapter-bytes"):
        read_manifest(tmp_path, digest="unread")
    digest = read_manifest(tmp_path, TAKEN_IN, digest="unread").digest
    found = StoredManifests(model).read(AdapterPart(digest, str(tmp_path), verified=True))
    assert [target.rank for target in found.targets] == [rank]


def test_what_does_not_fit_the_base_never_does(adapters: list[Path], tmp_path: Path) -> None:
    larger = BaseModel("other", "1" * 64, base_shapes(str(save("gpt2", tmp_path))))
    manifests = StoredManifests(larger)
    for _ in range(2):
        with pytest.raises(AdapterRefused):
            manifests.read(part(adapters[0]))


def test_what_is_known_is_bounded(model: BaseModel, adapters: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one recipe it is the one asked for last."""
    config = (adapters[0] / "adapter_config.json").stat().st_size
    header = int.from_bytes((adapters[0] / "adapter_model.safetensors").read_bytes()[:8], "little")
    monkeypatch.setattr(stored, "MOST_KNOWN", config + header + 64)
    manifests = StoredManifests(model)
    before = manifests.read(part(adapters[0]))
    assert manifests.read(part(adapters[1])).targets is before.targets
    manifests.read(part(adapters[2]))
    again = manifests.read(part(adapters[0]))
    assert again.targets is not before.targets
    assert again == before
