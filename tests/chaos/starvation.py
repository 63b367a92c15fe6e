"""One tenant asks for twenty adapters all the time, with room for four; what another sees that asks for one cold one.

    python tests/chaos/starvation.py [--seed N] [--seconds 40]

The quiet tenant sends a request a second for an adapter that nobody else asks for, and that leaves memory in between.
At the 95th percentile its first token may take as many steps as a waiting adapter is passed over at most, and a turn.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

import httpx
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from chaos.flood import LOUD, QUIET, Heard, key_of, listen, request
from livery.engine.roster import MAX_SKIPS
from livery.engine.sequence import TURN
from livery.models import resolve_model
from server.running import livery_serve

HOT, ROOM = 20, 4  # adapters
AT_ONCE = 40  # requests of the loud tenant
DEMO = Path(__file__).parents[2] / "adapters" / "demo" / "pirate"


def make_adapters(folder: Path) -> int:
    """Variants of one adapter, each of other weights; returns the bytes of one."""
    weights = load_file(DEMO / "adapter_model.safetensors")
    for number, name in enumerate([*(f"hot{number}" for number in range(HOT)), "cold"]):
        place = folder / name
        place.mkdir(parents=True)
        shutil.copy(DEMO / "adapter_config.json", place)
        save_file(
            {key: value * (1 + number / 64) for key, value in weights.items()},
            place / "adapter_model.safetensors",
        )
    return (folder / "cold" / "adapter_model.safetensors").stat().st_size


async def keep_asking(client: httpx.AsyncClient, run: common.Run, number: int, heard: list[Heard]) -> None:
    while True:
        heard.append(await listen(client, request(run.dice, 20, 32, f"hot{number % HOT}")))


async def every_second(client: httpx.AsyncClient, run: common.Run, seconds: float) -> list[Heard]:
    """A request a second for the cold adapter, whether or not the one before it was answered."""
    tasks: list[asyncio.Task[Heard]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tasks.append(asyncio.create_task(listen(client, request(run.dice, 20, 4, "cold"))))
        await asyncio.sleep(1)
    return await asyncio.gather(*tasks)


async def measure(run: common.Run, url: str, keys: dict[str, dict[str, str]], seconds: float) -> None:
    limits = httpx.Limits(max_connections=256)
    async with (
        httpx.AsyncClient(base_url=url, timeout=300, limits=limits, headers=keys[LOUD]) as loud,
        httpx.AsyncClient(base_url=url, timeout=300, limits=limits, headers=keys[QUIET]) as quiet,
    ):
        alone = await every_second(quiet, run, seconds / 8)
        hot: list[Heard] = []
        asking = [asyncio.create_task(keep_asking(loud, run, number, hot)) for number in range(AT_ONCE)]
        await asyncio.sleep(seconds / 8)
        beside = await every_second(quiet, run, seconds * 3 / 4)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    print("{:>14} {:>8} {:>9} {:>7} {:>7}  (ms)".format("", "requests", "TTFT p50", "p95", "max"))
    for name, heard in (("cold, alone", alone), ("cold, beside", beside), ("hot", hot)):
        cells = [f"{1000 * common.quantile([one.first for one in heard], q):.0f}" for q in (0.5, 0.95, 1)]
        print("{:>14} {:>8} {:>9} {:>7} {:>7}".format(name, len(heard), *cells))
    step = common.quantile([gap for one in hot for gap in one.gaps], 0.5)
    bound = (MAX_SKIPS + TURN) * step
    wait = common.quantile([one.first for one in beside], 0.95)
    run.say(f"{len(hot)} requests for hot adapters were answered meanwhile")
    run.check(
        f"the cold adapter's requests waited {wait:.2f} s at p95, at most {MAX_SKIPS} + {TURN} steps of "
        f"{1000 * step:.0f} ms, {bound:.2f} s",
        wait <= bound,
    )
    run.check("all of the quiet tenant's requests were answered", {one.status for one in alone + beside} == {200})
    run.check("the loud tenant was served as well", len(hot) > 0)


def main() -> int:
    options = common.arguments(__doc__ or "", seconds=40.0)
    run = common.Run("a cold adapter beside twenty hot ones", options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = {tenant: key_of(tenant, folder / "data") for tenant in (QUIET, LOUD)}
        size = make_adapters(folder / "adapters")
        model = resolve_model("smollm2-135m-instruct").path
        memory = str(size * ROOM * 9 // 8)
        with livery_serve(model, folder / "adapters", folder, "--adapter-memory", memory) as server:
            asyncio.run(measure(run, server.url, keys, options.seconds))
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
