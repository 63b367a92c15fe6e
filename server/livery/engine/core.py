"""The engine's heart: schedule -> execute -> update, one `step()` at a time, in one thread.

Carries adapters between residency (which decides), the loader (which reads) and the runner (which holds), and
keeps a failing step from ending more than the requests that were in it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from livery import logs
from livery.engine.base import (
    NOBODY,
    AdapterRef,
    Asker,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    RequestRefused,
    TokenDelta,
)
from livery.engine.blocks import BlockPool
from livery.engine.constraint import Constraints
from livery.engine.devices import answers
from livery.engine.images import AdapterImage
from livery.engine.loader import Done, Worker
from livery.engine.lora.bank import PackedAdapter
from livery.engine.messages import LoadOutcome
from livery.engine.pending import PendingStep
from livery.engine.plan import StepPlan, StepResult
from livery.engine.prefix_keys import kv_identity
from livery.engine.residency import Residency
from livery.engine.runner import ModelRunner
from livery.engine.scheduler import Scheduler
from livery.engine.tally import AdapterLog, StepClock, figures, standings
from livery.engine.versions import Placement
from livery.host import cores
from livery_adapters.refusal import AdapterRefused

log = logging.getLogger(__name__)

SCORED_BYTES = 64 << 20  # of logits of prompts' tokens in a step, in fp32
MAX_FAILED_STEPS = 3  # in a row; beyond that the device is taken to be lost
NOT_READ = "the adapter could not be read; the server's log says why"
UNLOADED = "the adapter was unloaded while it was loading"
LOAD_FAILED = "activation_failed"  # for what no check foresaw
STEP_FAILED = "the engine failed on a step with this request; the request was dropped, try it again"


@dataclass(frozen=True, slots=True)
class _Copy:
    """An image on its way to the device."""

    image: AdapterImage
    work: Callable[[], PackedAdapter]


Launched = PendingStep | StepResult  # a step under way, or how it failed at once


class EngineCore:
    """Everything of one engine but its borders. Not thread-safe: one caller steps it."""

    def __init__(self, runner: ModelRunner, wake: Callable[[], None]) -> None:
        """`wake` is called from the threads beside the step loop when what it does without is done."""
        self._runner = runner
        info = runner.info
        self._pool = BlockPool(info.num_blocks, info.block_size)
        self._residency = Residency(
            info.adapter_memory_bytes, info.host_adapter_memory_bytes, one_memory=runner.arena is None
        )
        self._scheduler = Scheduler(
            self._pool,
            self._residency,
            max_batch_tokens=info.max_batch_tokens,
            max_running=info.max_running,
            max_model_len=info.max_model_len,
            eos_token_ids=info.eos_token_ids,
            shared=kv_identity(info),
            speculate=info.speculate,
            draft_rows=info.draft_rows,
            scored_rows=max(1, SCORED_BYTES // (4 * info.vocab_size)),
            weight_bytes=info.weight_bytes,
        )
        self._loader = Worker("adapter-loader", runner.read_adapter, wake)
        self._copier = Worker[_Copy, PackedAdapter]("adapter-copier", lambda copy: copy.work(), wake)
        self._constraints = Constraints(
            runner.tokenizer, info.vocab_size, info.eos_token_ids, max(2, cores() // 2), wake
        )
        self._images: dict[str, AdapterImage] = {}  # in host memory
        self._load_results: list[LoadOutcome] = []
        self._failed_in_a_row = 0
        self._steps = 0
        self.step_tokens = 0  # of the step under way or the last one; 0: it computed nothing
        self.clock = StepClock()
        self._log = AdapterLog()
        self._idle = False
        self._overlaps = runner.overlaps
        self._ahead: tuple[StepPlan, Launched] | None = None  # launched before the step before it was looked at

    @property
    def info(self) -> EngineInfo:
        return self._runner.info

    @property
    def has_work(self) -> bool:
        """Whether any request is open."""
        return self._scheduler.has_work

    @property
    def is_idle(self) -> bool:
        """Whether only a message or a finished load can change anything: stepping on would spin."""
        return self._idle

    @property
    def seconds_left(self) -> float:
        """Until some request's time is up, which nothing else may bring to notice."""
        return self._scheduler.seconds_left

    @property
    def takes_grammars(self) -> bool:
        """Whether answers can be held to grammars: where the model has a tokenizer that is fit for it."""
        return self._constraints.can_hold

    # -- verbs ---------------------------------------------------------------------------------------

    def add(self, request: GenerationRequest) -> None:
        """Queue a request. Raises RequestRefused."""
        self._check_ids(request)
        if request.pooling is not None and not self.info.shapes.backbone:
            raise RequestRefused(f"{self.info.architecture} shows no hidden state apart from its head, to be pooled")
        grammar = request.sampling.grammar
        if request.adapter is not None:
            digest = request.adapter.digest
            self._log.asked(digest, resident=self._residency.is_resident(digest))
        self._scheduler.add(request, self._constraints.of(grammar, request.tenant) if grammar is not None else None)

    def _check_ids(self, request: GenerationRequest) -> None:
        """Every id indexes a table: those behind the base's only that of an adapter that has them."""
        adapter, params = request.adapter, request.sampling
        added = adapter.added_tokens if adapter is not None else 0
        image = self._images.get(adapter.digest) if adapter is not None else None
        if image is not None and image.packed.added_tokens != added:
            raise RequestRefused(f"the adapter has {image.packed.added_tokens} tokens of its own, not {added}")
        size = self.info.vocab_size + added
        listed = (*params.logit_bias, *params.allowed_token_ids, *params.stop_token_ids)
        words = (token for word in params.bad_words for token in word)
        before = request.prompt_token_ids[: request.adapter_start]
        for name, ids in (("prompt", request.prompt_token_ids), ("sampling", listed), ("bad word", words)):
            if any(not 0 <= token < size for token in ids):
                raise RequestRefused(f"a {name} token id is outside the model's vocabulary of {size}")
        if added and any(token >= self.info.vocab_size for token in before):
            raise RequestRefused(
                f"a prompt token id before the adapter's start is not one of the base's {size - added}"
            )

    def abort(self, request_id: str) -> TokenDelta | None:
        """Drop a request and give its last delta; None when it is already gone."""
        return self._scheduler.abort(request_id)

    def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> None:
        """Start reading a version unless it is there already. The outcome shows in `take_loads()`."""
        digest = adapter.digest
        if self._residency.load(adapter, asker):
            image = self._images.get(digest)
            effect = self._runner.effect(digest) if image is None else image.effect
            self._load_results.append(LoadOutcome(digest, effect))

    def keep_adapters(self, digests: Collection[str]) -> None:
        """Exactly these are never evicted for others."""
        self._residency.keep(digests)

    def unload_adapter(self, digest: str) -> None:
        if self._residency.retire(digest):
            self._load_results.append(LoadOutcome(digest, error=UNLOADED, code=LOAD_FAILED))

    def evict_adapter(self, digest: str) -> bool:
        """Give a version's device memory back unless a request uses it; it stays in host memory."""
        return self._residency.evict(digest)

    def take_loads(self) -> list[LoadOutcome]:
        """Versions that were read and verified, or failed, since the last call."""
        results, self._load_results = self._load_results, []
        return results

    def stats(self) -> EngineStats:
        scheduler, residency, roster = self._scheduler, self._residency, self._scheduler.roster
        tenants = standings(
            (one.tenant for one in roster.waiting), (one.tenant for one in roster.running), scheduler.tokens.ahead()
        )
        return EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            blocks_total=self._pool.num_blocks,
            blocks_free=self._pool.num_free,
            steps=self._steps,
            preemptions=scheduler.roster.preemptions,
            prefix_queries=scheduler.prefix.queries,
            prefix_hits=scheduler.prefix.hits,
            prefix_evictions=self._pool.evictions,
            blocks_cached=self._pool.num_cached,
            prompt_tokens=scheduler.outcomes.prompt_tokens,
            generated_tokens=scheduler.outcomes.generated_tokens,
            drafted_tokens=scheduler.drafting.drafted_tokens,
            accepted_tokens=scheduler.drafting.accepted_tokens,
            adapter_bytes=residency.resident_bytes,
            adapter_loads=residency.loads_from_store + residency.loads_from_host,
            adapter_loads_from_host=residency.loads_from_host,
            adapter_evictions=residency.evictions,
            host_adapter_bytes=residency.host_bytes,
            host_adapters=residency.in_host,
            resident_adapters=residency.resident,
            running_adapters=residency.pinned,
            waiting_adapters=scheduler.roster.waiting_adapters(),
            figures=figures(self.clock, self._log, tenants),
        )

    def ended(self) -> str:
        """The name of a thread beside the loop that ended by itself, if one did: what waits for it waits for ever."""
        return next((worker.name for worker in (self._loader, self._copier) if not worker.alive), "")

    def stop(self) -> None:
        self._loader.stop()
        self._copier.stop()
        self._constraints.stop()

    # -- the loop's body -----------------------------------------------------------------------------

    def step(self) -> list[TokenDelta]:
        """Move adapters along, then compute one plan. Raises only when the device seems lost."""
        self.step_tokens = 0
        self.clock.begin()
        deltas = self._settle_adapters()
        self._scheduler.end_expired()
        if self._ahead is not None:
            plan, pending = self._ahead
            self.step_tokens = plan.num_tokens
            if isinstance(pending, PendingStep):  # its masks come from the tokens of the step before it
                pending = self._attempt(plan, pending.chosen)
        else:
            plan = self._scheduler.schedule()
            self.step_tokens = plan.num_tokens
            made_room = self._settle_residency()
            self._idle = not plan.slices and not made_room  # what waits for that room comes in with the next step
            if not plan.slices:
                return deltas + self._scheduler.take_ended()
            self.clock.lap("schedule")
            pending = self._attempt(plan, lambda: self._runner.launch(plan))
        self._steps += 1
        self._ahead = self._launch_ahead(plan, pending)
        self.clock.lap("launch")
        deltas += self._finish(plan, pending) + self._scheduler.take_ended()
        self.clock.lap("update")
        self.clock.end(len(plan.slices), sum(len(part.token_ids) for part in plan.slices))
        return deltas

    def check_invariants(self) -> None:
        self._scheduler.check_invariants()

    def _launch_ahead(self, plan: StepPlan, pending: Launched) -> tuple[StepPlan, Launched] | None:
        """Let the device go on with the next step while the host looks at this one's tokens."""
        if not self._overlaps or not isinstance(pending, PendingStep):
            return None
        ahead = self._scheduler.schedule_ahead(plan)
        if ahead is None:
            return None
        return ahead, self._attempt(ahead, lambda: self._runner.launch(ahead, pending))

    def _finish(self, plan: StepPlan, pending: Launched) -> list[TokenDelta]:
        """Wait for a step's tokens and hand them out."""
        if not isinstance(pending, PendingStep):
            return self._scheduler.update(plan, pending)
        result = self._attempt(plan, pending.result)
        assert isinstance(result, StepResult)
        self.clock.lap("result")
        deltas = self._scheduler.update(plan, result)
        if self._ahead is not None:
            # What went on from a token that the device didn't have is passed over and computed again.
            ahead, launched = self._ahead
            slices = tuple(part for part in ahead.slices if part.request_id not in pending.unsettled)
            self._ahead = (StepPlan(slices), launched) if self._scheduler.has_work else None
        return deltas

    def _attempt(self, plan: StepPlan, action: Callable[[], Launched]) -> Launched:
        try:
            found = action()
        except Exception:  # boundary: a step's failure belongs to the requests in it
            self._failed_in_a_row += 1
            ids = [part.request_id for part in plan.slices]
            log.exception("a step failed with the requests %s", logs.listed(ids), extra=logs.of_requests(ids))
            if self._failed_in_a_row >= MAX_FAILED_STEPS or not answers(torch.device(self.info.device)):
                raise
            return StepResult(failed=dict.fromkeys(ids, STEP_FAILED))
        if isinstance(found, StepResult):
            self._failed_in_a_row = 0
        return found

    def _settle_adapters(self) -> list[TokenDelta]:
        """Take what was read and copied, place what fits, and start what is newly wanted."""
        deltas: list[TokenDelta] = []
        for copied in self._copier.collect():
            self._installed(copied)
        for read in self._loader.collect():
            deltas += self._take(read)
        roster = self._scheduler.roster
        self._residency.expect(roster.wanted_adapters(), roster.askers())
        placements = self._residency.place()
        self._carry_out_evictions()  # what makes room goes before what needs it comes
        self._place(placements)
        self._settle_residency()
        return deltas

    def _place(self, placements: Sequence[Placement]) -> None:
        """Bring images to the device: beside the step loop, or here where the device computes on them as they lie."""
        arena = self._runner.arena
        for placement in placements:
            image = self._images[placement.digest]
            if arena is None:
                self._runner.install(image.packed)
                self._residency.placed(placement.digest, 0.0)
                self._came(placement.digest, None)
            else:
                work = functools.partial(arena.place, image, placement.runs, arena.fence())
                self._copier.submit(_Copy(image, work))

    def _installed(self, copied: Done[_Copy, PackedAdapter]) -> None:
        if copied.result is None:
            raise RuntimeError(
                f"adapter {copied.job.image.digest[:12]} can't be copied to the device"
            ) from copied.error
        self._runner.install(copied.result)
        self._residency.placed(copied.job.image.digest, copied.seconds)
        self._came(copied.job.image.digest, copied.seconds)

    def _came(self, digest: str, seconds: float | None) -> None:
        self._log.placed(digest, seconds)
        self._scheduler.roster.adapter_came(digest)

    def _settle_residency(self) -> bool:
        """Carry out what was decided; whether that made room on the device."""
        for adapter in self._residency.take_loads():
            self._loader.submit(adapter)
        made_room = self._carry_out_evictions()
        for digest in self._residency.take_drops():
            self._copier.free(self._images.pop(digest).memory)
        return made_room

    def _carry_out_evictions(self) -> bool:
        evictions = self._residency.take_evictions()
        for digest in evictions:
            self._runner.evict(digest)
            self._log.evicted(digest)
        return bool(evictions)

    def _take(self, read: Done[AdapterRef, AdapterImage]) -> list[TokenDelta]:
        digest, image = read.job.digest, read.result
        waiting = self._scheduler.roster.waiting_for(digest) if read.error is not None else []
        error, code = None, LOAD_FAILED
        if isinstance(read.error, AdapterRefused):
            error, code = read.error.message, read.error.code
        elif read.error is not None:  # whose words may hold paths of this machine, and go to clients no further
            ids = [name for name, _ in waiting]
            words = "adapter %s can't be loaded (requests that wait for it: %s): %s"
            log.warning(words, digest[:12], logs.listed(ids) or "none", read.error, extra=logs.of_requests(ids))
            error = NOT_READ
        if error is not None and self._residency.read_elsewhere(digest, [named for _, named in waiting]):
            return []
        if image is not None and not self._residency.fits(image.sizes):
            error = (
                f"adapter {digest[:12]} needs {image.nbytes} bytes of device memory, more than the whole adapter "
                f"budget of {self._residency.budget_bytes}; raise --adapter-memory"
            )
        if image is None or error is not None:
            self._residency.failed(digest)
            self._log.failed(digest)
            self._load_results.append(LoadOutcome(digest, error=error, code=code))
            return self._scheduler.fail_waiting(digest, error or "the adapter could not be loaded")
        if self._residency.hosted(digest, image.sizes, read.seconds):
            self._images[digest] = image
            self._log.read(digest, read.seconds)
            # Read and verified: room is the requests' affair.
            self._load_results.append(LoadOutcome(digest, image.effect))
        else:
            self._load_results.append(LoadOutcome(digest, error=UNLOADED, code=LOAD_FAILED))
        return []
