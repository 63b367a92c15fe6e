"""A trainer that pushes thousands of versions of one adapter under requests that never pause: nothing piles up.

Each answer must be of a version that was active when it was admitted, and whole unless its push had it end; files,
history, adapter memory, descriptors and resident memory must stay what they were after a tenth of the pushes.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import httpx
from peft import LoraConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from chaos.common import Run
from engine.families import LLAMA_LINEAR
from engine.oracle import save_adapter
from server.pushed import NAME, Trained
from server.running import SMALL, tiny_model

GROWN_MB = 48.0  # that resident memory may grow by: allocators keep what they had at the busiest moment
LATE_S = 60.0


async def hurt(run: Run, url: str, pid: int, trained: Trained, data: Path, pushes: int, streams: int) -> None:
    await trained.upload()
    await trained.run(pushes // 10, streams)
    before = held(pid)
    run.say(f"{len(trained.versions)} versions: {before[0]:.0f} MB resident, {before[1]} descriptors")
    for part in range(1, 10):
        await trained.run(pushes // 10, streams)
        stored = len(list(data.rglob("adapter_model.safetensors")))
        memory, descriptors = held(pid)
        run.say(
            f"{len(trained.versions)} versions, {len(trained.answers)} answers: {memory:.0f} MB resident, "
            f"{descriptors} descriptors, files of {stored} versions"
        )
        run.check(
            f"{part}: files of at most {trained.keep + streams + 2} versions", stored <= trained.keep + streams + 2
        )
    after = held(pid)
    run.check(f"resident memory grew by at most {GROWN_MB:.0f} MB", after[0] <= before[0] + GROWN_MB)
    run.check("descriptors are as many as before", after[1] <= before[1] + 4)
    history = httpx.get(f"{url}/v1/adapters/{NAME}/versions").json()["data"]
    run.check(f"the history has {trained.keep} versions", len(history) == trained.keep)
    one = trained.folder / "adapter_model.safetensors"
    left = common.until(
        lambda: (
            len(list(data.rglob(one.name))) == trained.keep
            and common.gauges(url)["livery_adapter_memory_bytes"] < 2 * one.stat().st_size
        ),
        LATE_S,
    )
    run.check("at rest: files of as many, and one in the engine's memory", left is not None)
    try:
        trained.check()
    except AssertionError as wrong:
        run.say(str(wrong)[:500])
        run.check("every answer is of a version that was active when it was admitted", False)
    else:
        run.check("every answer is of a version that was active when it was admitted", True)
    made = len({answer.fingerprint for answer in trained.answers})
    run.say(f"{dict(trained.outcomes)} of {made} versions; seconds a push, by stage: {stages(trained)}")


def held(pid: int) -> tuple[float, int]:
    """Megabytes resident and descriptors of a server and its processes."""
    every = (pid, *common.children(pid))
    return sum(map(common.resident_mb, every)), sum(map(common.descriptors, every))


def stages(trained: Trained) -> str:
    return ", ".join(f"{stage} {sum(all_) / len(all_):.4f}" for stage, all_ in trained.seconds.items())


def main() -> int:
    given = common.arguments(__doc__ or "", pushes=2000, streams=6)
    common.skip_unless_linux("this script")
    run = Run(f"{given.pushes} versions of one adapter pushed beside {given.streams} streams", given.seed)
    with tempfile.TemporaryDirectory(prefix="livery-chaos-") as name:
        folder = Path(name)
        base = tiny_model(folder / "tiny")
        first = save_adapter(base, folder / "pool" / NAME, 1, LoraConfig(r=16, target_modules=LLAMA_LINEAR))
        with common.served(base, folder, "--log-level", "warning", *SMALL) as server:

            async def work() -> None:
                async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
                    trained = Trained(client, first, seed=run.seed)
                    data = folder / "server" / "data"
                    await hurt(run, server.url, server.pid, trained, data, given.pushes, given.streams)

            asyncio.run(work())
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
