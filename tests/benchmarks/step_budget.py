"""How many tokens a step may compute: what different budgets give on this machine.

    python tests/benchmarks/step_budget.py --budgets 256,128,64 --rounds 3 --out step-budget.json

A server for each budget, all running, asked in turn and back: requests a second and gaps between tokens with 16 streams
of 60 tokens in and 32 out, and the time to the first token of a lone prompt of 1,000.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos.common import quantile
from chaos.flood import Heard, listen, request
from livery import __version__
from livery.models import resolve_model
from livery_loadtest.origin import Origin, document, write_json
from server.running import livery_serve

STREAMS, REQUESTS, PROMPT, OUTPUT, LONG = 16, 48, 60, 32, 1000


@dataclass(frozen=True)
class Reading:
    budget: int
    requests_per_second: float
    gap_p50_ms: float
    gap_p95_ms: float
    first_of_long_s: float

    def told(self) -> str:
        return (
            f"{self.budget:>5} tokens: {self.requests_per_second:.2f} requests/s, gaps {self.gap_p50_ms:.0f} ms at p50 "
            f"and {self.gap_p95_ms:.0f} at p95, first of {LONG} after {self.first_of_long_s:.2f} s"
        )


async def together(client: httpx.AsyncClient, dice: random.Random, requests: int) -> tuple[float, list[float]]:
    """Requests a second, and the gaps between the tokens of each stream, in seconds."""
    left, heard = iter(range(requests)), list[Heard]()

    async def ask() -> None:
        for _ in left:
            heard.append(await listen(client, request(dice, PROMPT, OUTPUT)))

    begun = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(STREAMS)))
    return requests / (time.perf_counter() - begun), [gap for one in heard for gap in one.gaps]


async def read(url: str, budget: int, dice: random.Random, requests: int) -> Reading:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        rate, gaps = await together(client, dice, requests)
        firsts = [(await listen(client, request(dice, LONG, 2))).first for _ in range(3)]
    between = [1e3 * quantile(gaps, share) for share in (0.5, 0.95)]
    return Reading(budget, rate, between[0], between[1], statistics.median(firsts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", default="256,128,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    budgets = [int(one) for one in given.budgets.split(",")]
    model, dice, readings = resolve_model("smollm2-135m-instruct").path, random.Random(0), list[Reading]()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        urls = {}
        for budget in budgets:
            folder = Path(name) / str(budget)
            (folder / "none").mkdir(parents=True)
            flags = ("--max-batch-tokens", str(budget), "--threads", str(given.threads))
            urls[budget] = stack.enter_context(livery_serve(model, folder / "none", folder, *flags)).url
            asyncio.run(read(urls[budget], budget, dice, STREAMS))  # warm
        for round_ in range(given.rounds):
            for budget in budgets if round_ % 2 == 0 else reversed(budgets):
                readings.append(asyncio.run(read(urls[budget], budget, dice, REQUESTS)))
                print(readings[-1].told(), flush=True)
    if given.out:
        measured = {"threads": given.threads, "readings": [asdict(one) for one in readings]}
        packages = ("torch", "transformers")
        write_json(document("livery-step-budget/1", Origin.here(__version__), packages, measured), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
