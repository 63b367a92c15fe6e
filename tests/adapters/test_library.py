"""Taking adapters in: nothing is stored before it is proven, what was acknowledged stays, different ones don't wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from adapters.peft_made import tiny_base
from adapters.scene import Scene, digest_in, out_of
from livery_adapters.effect import AdapterEffect, ModuleEffect
from livery_adapters.incoming import Incoming
from livery_adapters.library import AdapterLibrary, Intake
from livery_adapters.profile import Profile
from livery_adapters.prover import Candidate
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused
from livery_adapters.registry import GenerationMismatch, NothingToRollBack, UnknownAdapter, VersionFacts
from livery_adapters.tensor_file import WEIGHTS_NAME
from livery_adapters.text_side import NoText

API = Intake("api")


async def test_a_version_is_proven_before_it_is_stored_and_its_report_is_kept(scene: Scene, pool: list[Path]) -> None:
    stored_when_proven: list[list[str]] = []
    scene.prover.while_proving = lambda _: stored_when_proven.append(scene.store.digests())
    record = await scene.library.add("pirate", out_of(pool[0]), API)
    assert stored_when_proven == [[]]
    assert record.state == "ready"
    assert record.active is not None
    assert record.active.facts.digest == digest_in(pool[0])
    assert digest_in(scene.store.path(digest_in(pool[0]))) == digest_in(pool[0])
    assert record.active.facts.coverage["exact"] is True
    assert record.active.facts.coverage["adapted"] == 6


async def test_a_check_keeps_nothing(scene: Scene, pool: list[Path]) -> None:
    report = await scene.library.check(out_of(pool[0]))
    assert report.exact is True
    assert scene.names() == scene.store.digests() == []
    assert scene.prover.forgotten == [digest_in(pool[0])]
    assert list((scene.store.root / "incoming").iterdir()) == []


async def test_what_cannot_be_proven_is_not_stored_and_the_old_version_stays(scene: Scene, pool: list[Path]) -> None:
    await scene.library.add("pirate", out_of(pool[0]), API)
    scene.prover.unable.add(digest_in(pool[1]))
    with pytest.raises(AdapterRefused, match="no room for it"):
        await scene.library.add("pirate", out_of(pool[1]), API)
    assert scene.standing("pirate") == ("ready", digest_in(pool[0]), None)
    assert scene.store.digests() == [digest_in(pool[0])]


async def test_an_adapter_that_changes_nothing_is_refused(scene: Scene, pool: list[Path]) -> None:
    scene.prover.effect = AdapterEffect({"model.a": ModuleEffect(4, 0.0)}, 100)
    with pytest.raises(AdapterRefused, match="changes nothing") as caught:
        await scene.library.add("pirate", out_of(pool[0]), API)
    assert caught.value.code == "zero_effect"
    assert scene.names() == scene.store.digests() == []


async def test_the_same_content_again_changes_nothing_and_is_not_proven_again(scene: Scene, pool: list[Path]) -> None:
    first = await scene.library.add("pirate", out_of(pool[0]), API)
    again = await scene.library.add("pirate", out_of(pool[0]), API)
    assert again.generation == first.generation
    await scene.library.add("corsair", out_of(pool[0]), API)
    assert scene.prover.proven == [digest_in(pool[0])]
    assert scene.store.digests() == [digest_in(pool[0])]


class OtherActive(NoText):
    """Gives each version a profile of its own, and has others become active meanwhile, as often as it is told."""

    def __init__(self, activate: Callable[[int], object], times: int) -> None:
        self.activate, self.times, self.settled = activate, times, 0

    async def settle(self, profile: Profile, found: Mapping[str, object], added_tokens: int = 0) -> Profile:
        self.settled += 1
        if self.settled <= self.times:
            self.activate(self.settled)
        return msgspec.structs.replace(profile, system_prompt=f"settled {self.settled}")


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_profile_is_settled_for_the_version_that_gets_it(scene: Scene, pool: list[Path], times: int) -> None:
    digests = [digest_in(path) for path in pool[:2]]
    for path in pool[:2]:
        await scene.library.add("pirate", out_of(path), API)  # the second is active
    text = OtherActive(lambda number: scene.registry.activate("pirate", digests[(number + 1) % 2]), times)
    library = AdapterLibrary(scene.registry, scene.store, tiny_base(), DEFAULT_LIMITS, text=text)
    if times == 3:
        with pytest.raises(GenerationMismatch):
            await library.set_profile("pirate", Profile())
        assert active_of(scene).profile == {}
    else:
        await library.set_profile("pirate", Profile())
        assert (active_of(scene).weights, active_of(scene).profile) == (
            digests[(times + 1) % 2],
            {"system_prompt": f"settled {times + 1}"},
        )


async def test_whoever_names_a_generation_is_told_that_it_is_another(scene: Scene, pool: list[Path]) -> None:
    first = await scene.library.add("pirate", out_of(pool[0]), API)
    second = await scene.library.add("pirate", out_of(pool[1]), API)
    text = OtherActive(lambda _: scene.registry.activate("pirate", digest_in(pool[0])), 1)
    library = AdapterLibrary(scene.registry, scene.store, tiny_base(), DEFAULT_LIMITS, text=text)
    with pytest.raises(GenerationMismatch):
        await library.set_profile("pirate", Profile(), second.generation)
    assert (text.settled, active_of(scene)) == (1, first.active and first.active.facts)


def active_of(scene: Scene) -> VersionFacts:
    active = scene.registry.get("pirate").active
    assert active is not None
    return active.facts


async def test_a_slow_proof_delays_no_other_name_and_no_departure(scene: Scene, pool: list[Path]) -> None:
    slow, quick, old = pool
    await scene.library.add("old", out_of(old), API)
    gate = scene.prover.held[digest_in(slow)] = asyncio.Event()
    begun = asyncio.Event()

    def note(candidate: Candidate) -> None:
        if candidate.digest == digest_in(slow):
            begun.set()

    scene.prover.while_proving = note
    async with asyncio.timeout(60):
        adding = asyncio.create_task(scene.library.add("slow", out_of(slow), API))
        await begun.wait()
        await scene.library.add("quick", out_of(quick), API)
        await scene.library.retire("old")
        assert await scene.kept() == [digest_in(quick)]
        gate.set()
        await adding
    assert scene.names() == ["quick", "slow"]
    assert await scene.kept() == sorted([digest_in(quick), digest_in(slow)])


async def test_of_two_at_once_the_one_acknowledged_last_is_active(scene: Scene, pool: list[Path]) -> None:
    slow, quick, _ = pool
    gate = scene.prover.held[digest_in(slow)] = asyncio.Event()
    async with asyncio.timeout(60):
        adding = asyncio.create_task(scene.library.add("pirate", out_of(slow), API))
        record = await scene.library.add("pirate", out_of(quick), API)
        assert (record.generation, scene.standing("pirate")[1]) == (1, digest_in(quick))
        gate.set()
        await adding
    assert scene.standing("pirate") == ("ready", digest_in(slow), None)
    history = [version.facts.digest for version in scene.registry.versions("pirate")]
    assert history == [digest_in(slow), digest_in(quick)]


async def test_of_two_at_once_that_expect_a_generation_one_is_kept(scene: Scene, pool: list[Path]) -> None:
    """Both are within bounds when they begin; which of them was first is decided when they are recorded."""
    new = Intake("api", expected_generation=0)
    gate = scene.prover.held[digest_in(pool[0])] = asyncio.Event()
    async with asyncio.timeout(60):
        loser = asyncio.create_task(scene.library.add("pirate", out_of(pool[0]), new))
        await scene.library.add("pirate", out_of(pool[1]), new)
        gate.set()
        with pytest.raises(GenerationMismatch):
            await loser
    assert await scene.kept() == [digest_in(pool[1])]


async def test_a_stalled_upload_delays_no_other_change_of_its_name(scene: Scene, pool: list[Path]) -> None:
    for folder in pool[:2]:
        await scene.library.add("pirate", out_of(folder), API)
    arrived = asyncio.Event()

    async def stalled(incoming: Incoming) -> str:
        await arrived.wait()
        return await out_of(pool[2])(incoming)

    async with asyncio.timeout(60):
        adding = asyncio.create_task(scene.library.add("pirate", stalled, API))
        await scene.library.rollback("pirate")
        await scene.library.activate("pirate", "2")
        await scene.library.retire("pirate")
        arrived.set()
        await adding
    assert scene.standing("pirate") == ("ready", digest_in(pool[2]), None)


async def test_a_compare_and_set_that_is_lost_already_costs_no_upload(scene: Scene, pool: list[Path]) -> None:
    await scene.library.add("pirate", out_of(pool[0]), API)

    async def never(_: Incoming) -> str:
        raise AssertionError("nothing should be sent")

    with pytest.raises(GenerationMismatch):
        await scene.library.add("pirate", never, Intake("api", expected_generation=0))


async def test_a_generation_that_is_not_the_expected_one_stores_nothing(scene: Scene, pool: list[Path]) -> None:
    record = await scene.library.add("pirate", out_of(pool[0]), Intake("api", expected_generation=0))
    with pytest.raises(GenerationMismatch):
        await scene.library.add("pirate", out_of(pool[1]), Intake("api", expected_generation=0))
    assert await scene.kept() == [digest_in(pool[0])]
    await scene.library.add("pirate", out_of(pool[1]), Intake("api", expected_generation=record.generation))
    assert scene.standing("pirate")[1] == digest_in(pool[1])


async def test_rolling_back_and_forth(scene: Scene, pool: list[Path]) -> None:
    for folder in pool[:2]:
        await scene.library.add("pirate", out_of(folder), API)
    assert (await scene.library.rollback("pirate")).active is not None
    assert scene.standing("pirate")[1] == digest_in(pool[0])
    await scene.library.activate("pirate", "2")
    assert scene.standing("pirate")[1] == digest_in(pool[1])
    await scene.library.activate("pirate", digest_in(pool[0])[:8])
    assert scene.standing("pirate")[1] == digest_in(pool[0])
    await scene.library.add("corsair", out_of(pool[2]), API)
    with pytest.raises(NothingToRollBack):
        await scene.library.rollback("corsair")


async def test_a_version_added_aside_waits_to_be_activated(scene: Scene, pool: list[Path]) -> None:
    await scene.library.add("pirate", out_of(pool[0]), API)
    await scene.library.add("pirate", out_of(pool[1]), Intake("api", activate=False))
    assert scene.standing("pirate")[1] == digest_in(pool[0])
    assert await scene.kept() == sorted(map(digest_in, pool[:2]))
    await scene.library.activate("pirate", "2")
    assert scene.standing("pirate")[1] == digest_in(pool[1])


async def test_retiring_takes_the_history_along(scene: Scene, pool: list[Path]) -> None:
    for folder in pool[:2]:
        await scene.library.add("pirate", out_of(folder), API)
    await scene.library.retire("pirate")
    assert scene.names() == []
    assert await scene.kept() == []
    with pytest.raises(UnknownAdapter):
        await scene.library.retire("pirate")


async def test_files_in_use_outlive_their_name(scene: Scene, pool: list[Path]) -> None:
    await scene.library.add("pirate", out_of(pool[0]), API)
    await scene.library.retire("pirate")
    hold = scene.store.hold(digest_in(pool[0]))
    assert await scene.library.collect_garbage() == []
    assert scene.store.digests() == [digest_in(pool[0])]
    hold.release()
    assert await scene.kept() == []


async def test_a_stored_copy_that_rotted_is_replaced_by_the_next_one_taken(scene: Scene, pool: list[Path]) -> None:
    await scene.library.add("pirate", out_of(pool[0]), API)
    stored = scene.store.path(digest_in(pool[0]))
    weights = stored / WEIGHTS_NAME
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    await scene.library.add("corsair", out_of(pool[0]), API)
    assert digest_in(stored) == digest_in(pool[0])


async def test_export_gives_the_files_back(scene: Scene, pool: list[Path], tmp_path: Path) -> None:
    await scene.library.add("pirate", out_of(pool[0]), API)
    await scene.library.export(digest_in(pool[0]), tmp_path / "out")
    assert digest_in(tmp_path / "out") == digest_in(pool[0])
    with pytest.raises(FileExistsError, match="not empty"):
        await scene.library.export(digest_in(pool[0]), tmp_path / "out")
