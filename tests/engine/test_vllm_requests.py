"""Requests on their way through vLLM, which isn't there: what they hold of it is given back, whenever they end."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from engine.told_vllm import ToldVllm, ref
from livery.engine.base import GenerationRequest, SamplingParams, TokenDelta
from livery.engine.vllm_found import find_vllm
from livery.engine.vllm_process import VllmProcess
from livery.engine.vllm_watch import StepCounts

if TYPE_CHECKING:
    from livery.engine.vllm_requests import VllmRequests

OF_VLLM = {
    "vllm": (),
    "vllm.exceptions": ("VLLMClientError", "VLLMServerError"),
    "vllm.inputs": (),
    "vllm.inputs.engine": ("tokens_input",),
    "vllm.outputs": ("RequestOutput",),
    "vllm.sampling_params": ("RequestOutputKind", "SamplingParams", "StructuredOutputsParams"),
}
WITH_VLLM = ("livery.engine.vllm_requests", "livery.engine.vllm_sampling")
TURNS = 24  # of the loop: from before an adapter is there until after its request is vLLM's


class _Named(Exception):
    """Whatever it is in vLLM."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()


@pytest.fixture(scope="module")
def requests() -> Iterator[ModuleType]:
    """livery.engine.vllm_requests, with as much of vLLM as it names."""
    if find_vllm() is not None:
        yield importlib.import_module(WITH_VLLM[0])
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, members in OF_VLLM.items():
            module = ModuleType(name)
            vars(module).update({member: type(member, (_Named,), {}) for member in members})
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module(WITH_VLLM[0])
        for name in WITH_VLLM:  # whoever asks for them next has to find vLLM
            del sys.modules[name]


class Scene:
    """Requests over adapters that nobody reads, at a vLLM that never answers."""

    def __init__(self, requests: ModuleType, folder: Path) -> None:
        self.told = ToldVllm(folder, host=2)
        self.aborted: list[str] = []
        process = VllmProcess(StepCounts(), hang_s=60.0)
        process._llm = SimpleNamespace(generate=self._generate, abort=self._abort)
        sampling = SimpleNamespace(params=lambda request: None)
        self.requests: VllmRequests = requests.VllmRequests(
            process, self.told.adapters, self.told.queue, sampling, StepCounts(), 1.0
        )
        self._failed = requests.VLLMServerError
        self._end = asyncio.Event()

    async def _generate(self, *_: object, **__: object) -> AsyncIterator[Any]:
        await self._end.wait()
        raise self._failed
        yield

    async def _abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self._end.set()


@pytest.mark.parametrize("way", ["aborted", "left"])
async def test_a_request_that_ends_as_its_adapter_comes_does_not_keep_it(
    requests: ModuleType, tmp_path: Path, way: str
) -> None:
    """At every turn of the loop between the two."""
    seen = set()
    for turns in range(TURNS):
        folder = tmp_path / str(turns)
        folder.mkdir()
        scene = Scene(requests, folder)
        adapters = scene.told.adapters
        comes = scene.told.hold_up("add_lora")
        request = GenerationRequest("r", [3, 4], SamplingParams(max_tokens=5), ref("a"))
        answer = asyncio.ensure_future(deltas(scene.requests, request))
        await scene.told.reached["add_lora"].wait()
        loads = set(adapters._loads)
        comes.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        seen.add((scene.requests._open["r"].told, adapters.waited_for))
        if way == "aborted":
            await scene.requests.abort("r")
        else:
            answer.cancel()
        await asyncio.wait({answer})
        await asyncio.wait(loads)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert adapters.running == (), f"it is in use for ever, ended {turns} turns after its adapter came"
        await adapters.unload("a")
        assert not scene.told.folders
        if way == "aborted":
            assert [delta.finish_reason for delta in answer.result()] in (["abort"], ["error"])
    assert seen == {(False, ("a",)), (False, ()), (True, ())}, "from before it came until the request was vLLM's"


async def deltas(requests: VllmRequests, request: GenerationRequest) -> list[TokenDelta]:
    return [delta async for delta in requests.generate(request)]
