"""A profile.yaml in a followed folder: editing it is a new version over the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from adapters.scene import Scene, digest_in
from livery_adapters.identity import version_digest
from livery_adapters.weightless import CONFIG


async def test_editing_a_profile_makes_a_version_and_moves_no_weights(scene: Scene, pirate: Path) -> None:
    folder = scene.put(pirate, "pirate")
    weights = digest_in(pirate)
    versions = []
    for prompt in (None, "You are a pirate.", "You are a polite pirate."):
        profile = {"system_prompt": prompt} if prompt else {}
        if prompt:
            (folder / "profile.yaml").write_text(f"system_prompt: {prompt}\n")
        assert await scene.folder.scan()
        active = scene.registry.get("pirate").active
        assert active is not None
        assert active.facts.profile == profile
        assert active.facts.weights == weights
        assert active.facts.digest == version_digest(weights, 0, profile)
        versions.append(active.facts.digest)
    assert len(set(versions)) == 3
    assert scene.prover.proven == [weights], "what was run once is not run again for other words"
    assert scene.store.digests() == [weights]
    (folder / "profile.yaml").unlink()
    assert await scene.folder.scan()
    back = scene.registry.get("pirate")
    assert back.active is not None
    assert (back.active.facts.digest, back.active.number) == (weights, 1)


async def test_a_bad_profile_leaves_the_old_version_serving(scene: Scene, pirate: Path) -> None:
    folder = scene.put(pirate, "pirate")
    assert await scene.folder.scan()
    (folder / "profile.yaml").write_text("temprature: 1\n")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), "bad_profile")
    assert "did you mean temperature?" in (scene.registry.get("pirate").error or "")


async def test_a_profile_alone_is_no_adapter(scene: Scene) -> None:
    (scene.root / "words").mkdir()
    (scene.root / "words" / "profile.yaml").write_text("temperature: 1\n")
    assert await scene.folder.scan()
    assert scene.names() == []


async def test_a_folder_that_says_so_is_a_profile_over_the_base(scene: Scene, pirate: Path) -> None:
    folder = scene.root / "clerk"
    folder.mkdir()
    (folder / "profile.yaml").write_text("system_prompt: You are a clerk.\n")
    (folder / "adapter_config.json").write_bytes(CONFIG)
    assert await scene.folder.scan()
    active = scene.registry.get("clerk").active
    assert active is not None
    assert (active.facts.peft_type, active.state) == ("NONE", "ready")
    assert active.facts.profile == {"system_prompt": "You are a clerk."}
    assert scene.prover.proven == [], "there is nothing to run"
    shutil.copy(pirate / "adapter_model.safetensors", folder)
    assert await scene.folder.scan()
    assert scene.standing("clerk") == ("ready", active.facts.digest, "bad_header"), "it says none, and has weights"
    shutil.copy(pirate / "adapter_config.json", folder)
    assert await scene.folder.scan()
    assert scene.registry.get("clerk").active.facts.peft_type == "LORA"  # type: ignore[union-attr]


async def test_what_the_api_decided_stays_until_the_folder_changes(scene: Scene, pirate: Path) -> None:
    folder = scene.put(pirate, "pirate")
    (folder / "profile.yaml").write_text("temperature: 0.5\n")
    assert await scene.folder.scan()
    scene.registry.set_profile("pirate", {"temperature": 0.1})
    (folder / "profile.yaml").touch()
    assert await scene.folder.scan()
    assert scene.registry.get("pirate").active.facts.profile == {"temperature": 0.1}  # type: ignore[union-attr]
    (folder / "profile.yaml").write_text("temperature: 0.7\n")
    assert await scene.folder.scan()
    assert scene.registry.get("pirate").active.facts.profile == {"temperature": 0.7}  # type: ignore[union-attr]
