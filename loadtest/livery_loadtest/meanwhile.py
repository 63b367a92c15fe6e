"""What a script does to the server beside its requests: adapters unloaded and loaded, commands that cause faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence

import httpx

from livery_loadtest.record import Hooked, Load
from livery_loadtest.script import Change, Script
from livery_loadtest.spec import Hook
from livery_loadtest.target import Target, key_header

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"  # vLLM's routes, which Livery has too
CHANGE_S = 300.0
MOST_SHOWN = 300  # characters of a server's message
MOST_OUTPUT = 2000  # bytes at the end of a command's output


class Meanwhile:
    """The changes and, where they are allowed, the hooks of a script, at their times after `begin`.

    Changes go one after the other. What has begun when the run ends is waited for, so that no adapter stays away; what
    has not isn't done.
    """

    def __init__(self, script: Script, target: Target, begin: float, *, allow_hooks: bool = False) -> None:
        self._changes = script.changes
        self._hooks: Sequence[Hook] = script.hooks if allow_hooks else ()
        self._target = target
        self._begin = begin
        self._ended = asyncio.Event()
        self.loads: list[Load] = []
        self.hooked: list[Hooked] = []

    async def run(self) -> None:
        """Do all of it, or what falls before `end` is called."""
        await asyncio.gather(self._change_all(), *(self._hook(hook) for hook in self._hooks))

    def end(self) -> None:
        self._ended.set()

    async def _ended_before(self, at: float) -> bool:
        try:
            async with asyncio.timeout(max(0.0, self._begin + at - time.perf_counter())):
                return await self._ended.wait()
        except TimeoutError:
            return self._ended.is_set()

    async def _change_all(self) -> None:
        headers = key_header(self._target.key_env)
        async with httpx.AsyncClient(timeout=CHANGE_S, trust_env=False, headers=headers) as client:
            for change in self._changes:
                if await self._ended_before(change.at):
                    return
                self.loads.append(await self._change(client, change))

    async def _change(self, client: httpx.AsyncClient, change: Change) -> Load:
        """Unload and load one adapter; the seconds are those of the load."""
        at = time.perf_counter()
        unloaded = await self._post(client, UNLOAD, {"lora_name": change.model})
        begun = time.perf_counter()
        body = {"lora_name": change.model, "lora_path": change.source}
        error = await self._post(client, LOAD, body) or unloaded
        return Load(at - self._begin, change.model, time.perf_counter() - begun, error)

    async def _post(self, client: httpx.AsyncClient, path: str, body: dict[str, str]) -> str | None:
        """What went wrong, if anything."""
        try:
            response = await client.post(self._target.url + path, json=body)
        except httpx.HTTPError as failure:
            return f"{path}: {type(failure).__name__}: {failure}"
        if response.is_success:
            return None
        return f"{path}: http {response.status_code}: {response.text[:MOST_SHOWN]}"

    async def _hook(self, hook: Hook) -> None:
        if await self._ended_before(hook.at_s):
            return
        begun = time.perf_counter()
        process = await asyncio.create_subprocess_shell(
            hook.run,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "TARGET_NAME": self._target.name, "TARGET_URL": self._target.url},
            start_new_session=True,
        )
        output = bytearray()
        status: int | None = None
        try:
            async with asyncio.timeout(hook.timeout_s):
                await _read_end(process, output)
                status = await process.wait()
        except TimeoutError:
            pass
        finally:  # what it left behind in its session goes with it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        shown = output.decode(errors="replace")
        took = time.perf_counter() - begun
        self.hooked.append(Hooked(begun - self._begin, hook.name or hook.run, took, status, shown))


async def _read_end(process: asyncio.subprocess.Process, output: bytearray) -> None:
    """Read to the end, and keep the end."""
    assert process.stdout is not None
    while data := await process.stdout.read(1 << 16):
        output += data
        del output[:-MOST_OUTPUT]
