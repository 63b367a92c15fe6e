"""The training itself: PEFT's adapter on transformers' model, by TRL's trainers. Needs torch and the extra `[train]`.

    trained = train(run, base, data, work, watch, start)  # goes on from the work's newest checkpoint, if it has one
    trained.after.loss

The adapter is in `work.adapter` afterwards, as PEFT writes it.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from livery.models import ResolvedModel
from livery.training.dataset import Data
from livery.training.measure import Answers, Measured, measure
from livery.training.model import (
    TrainingStopped,
    begin_with,
    cast_around_whole_modules,
    chosen_device,
    chosen_dtype,
    drop_only_for,
    load_base,
    lora_config,
)
from livery.training.run_file import AnyRun, Dpo
from livery.training.tokens import Learnt, Pair
from livery.training.work import Work
from livery_adapters.shortage import SHORTAGE_ERRORS, lacks_memory
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

_CHECKPOINTS_KEPT = 2
_NUMBERS_PER_WEIGHT = 3  # of a checkpoint: the weight and AdamW's two moments, fp32

Points = list[tuple[int, float]]


class Watch(Protocol):
    """Hears of each step: how many are done, of how many, and the loss of the last (nats)."""

    def __call__(self, done: int, total: int, loss: float, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Trained:
    """What became of a run. `before` and `after` are PEFT's numbers on what was held out, None where nothing was:
    `before` of the base, or of the adapter that was gone on with.

    `losses` are of each step, `held_out` of each checkpoint and of the beginning. `resumed` is the step that this
    process went on from, `seconds` are of all processes up to here.
    """

    steps: int
    trained_numbers: int
    losses: Points
    held_out: Points
    before: Measured | None
    after: Measured | None
    seconds: float
    resumed: int
    device: str


def train(run: AnyRun, base: ResolvedModel, data: Data, work: Work, watch: Watch, start: Path | None = None) -> Trained:
    """`start` is the directory of an adapter to go on with, in place of a new one.

    Raises TrainingStopped, WorkInvalid, ModelRefused, OSError.
    """
    device = chosen_device(run)
    _quieten()
    with _worded(work, f"load {base.name}; give a quantization, or use a larger machine"):
        trainer = trainer_of(run, base, data, work, device, start)
    model = trainer.model
    numbers = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    work.check_room(numbers * 4 * _NUMBERS_PER_WEIGHT * (_CHECKPOINTS_KEPT + 1))
    found = work.checkpoint()
    going_on, facts = found if found else (None, {})
    with _worded(work, "measure what is held out; give a smaller max_length or a quantization"):
        held = _HeldOut(run, model, data.held_out, facts, from_base=start is None)
    trainer.remove_callback(PrinterCallback)
    watching = _Watching(watch, work, held, time.monotonic() - facts.get("seconds", 0.0))
    trainer.add_callback(watching)
    with _worded(
        work,
        "make a step of this run; give a smaller batch_size (with more accumulate), a smaller max_length, "
        "gradient_checkpointing: true or a quantization",
    ):
        history = _fitted(trainer, going_on, facts.get("step", 0))
        after = held.measure()
        held.note(trainer.args.max_steps)
        _save(model, base, work)
    return Trained(
        steps=trainer.args.max_steps,
        trained_numbers=numbers,
        losses=[(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        held_out=held.points,
        before=held.before,
        after=after,
        seconds=watching.seconds(),
        resumed=facts.get("step", 0),
        device=device,
    )


def total_steps(run: AnyRun, examples: int) -> int:
    """How many steps a run takes."""
    per_epoch = math.ceil(math.ceil(examples / run.batch_size) / run.accumulate)
    return run.steps or max(1, math.ceil(run.epochs * per_epoch))


# -- inside ------------------------------------------------------------------------------------------------


def _fitted(trainer: Any, going_on: Path | None, done: int) -> list[dict[str, Any]]:  # noqa: ANN401
    """Train what is left; what was logged of all steps. From its last checkpoint a Trainer would take one step more."""
    if going_on is None or done < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(going_on) if going_on else None)
        history: list[dict[str, Any]] = trainer.state.log_history
        return history
    set_peft_model_state_dict(trainer.model, load_file(going_on / WEIGHTS_NAME))
    written: list[dict[str, Any]] = json.loads((going_on / "trainer_state.json").read_text())["log_history"]
    return written


@contextmanager
def _worded(work: Work, what: str) -> Iterator[None]:
    """What fails for lack of room or memory ends in words: there isn't enough memory to `what`.

    Raises WorkInvalid, TrainingStopped.
    """
    try:
        yield
    except SHORTAGE_ERRORS as error:  # where nothing can be written, too
        if full := work.full(error):
            raise full from error
        if not lacks_memory(error):
            raise
        step = work.newest()
        kept = f". Step {step} is kept in {work.folder}, for the very same run on a larger machine" if step else ""
        raise TrainingStopped(f"there isn't enough memory to {what}{kept}") from error


class _Careful:
    """Beside a Trainer: ends before a loss that is no number reaches the weights."""

    state: Any
    lr_scheduler: Any

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss):
            rate = self.lr_scheduler.get_last_lr()[0]
            raise TrainingStopped(
                f"the loss of step {self.state.global_step + 1} is {float(loss)}, at a learning rate of {rate:.3g}: "
                "the "
                "training diverged. Give a lower learning_rate, more warmup or a lower lora_alpha; if it is so at "
                "step 1, "
                "look for examples that are all one token, or use dtype: float32"
            )
        return loss


class _Sft(_Careful, SFTTrainer):  # type: ignore[misc]
    pass


class _Dpo(_Careful, DPOTrainer):  # type: ignore[misc]
    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:  # noqa: ANN401
        """Examples are encoded already, as the server encodes them."""
        return dataset


def trainer_of(run: AnyRun, base: ResolvedModel, data: Data, work: Work, device: str, start: Path | None) -> Any:  # noqa: ANN401  (TRL has no types)
    """A trainer whose model is the base under a new adapter, which changes nothing yet, or under the one at `start`.

    What is trained is fp32. Raises ModelRefused, TrainingStopped.
    """
    trainer = _built(run, base, data, work, device, start)
    model = trainer.model
    for parameter in model.parameters():  # TRL rounds them to bf16 over a quantised base
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if start:
        begin_with(model, start)
    if isinstance(run, Dpo):
        drop_only_for(model, "default")
    cast_around_whole_modules(model, chosen_dtype(run, device))
    return trainer


def _built(run: AnyRun, base: ResolvedModel, data: Data, work: Work, device: str, start: Path | None) -> Any:  # noqa: ANN401
    """As TRL makes it. Raises ModelRefused, TrainingStopped."""
    steps = total_steps(run, len(data.train))
    settings: dict[str, Any] = {
        "output_dir": str(work.checkpoints),
        "per_device_train_batch_size": run.batch_size,
        "gradient_accumulation_steps": run.accumulate,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": run.schedule if run.schedule != "constant" else "constant_with_warmup",
        "warmup_steps": round(run.warmup * steps),
        "weight_decay": run.weight_decay,
        "max_grad_norm": run.max_grad_norm,
        "max_steps": steps,
        "gradient_checkpointing": run.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": run.checkpoint_every,
        "save_total_limit": _CHECKPOINTS_KEPT,
        "eval_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "seed": run.seed,
        "data_seed": run.seed,
        "bf16": False,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": False,
        "max_length": None,
    }
    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_list([_row(item) for item in data.train])
    model = load_base(run, base, device)
    given: dict[str, Any] = {"model": model, "train_dataset": rows, "processing_class": tokenizer}
    try:
        if start is None:
            given["peft_config"] = lora_config(run, model)
        else:  # TRL's DPO takes a copy of it for its reference
            given["model"] = PeftModel.from_pretrained(model, str(start), is_trainable=True)
        if isinstance(run, Dpo):
            settings |= {"beta": run.beta, "loss_type": [run.loss], "disable_dropout": False}
            return _Dpo(args=DPOConfig(**settings), **given)
        return _Sft(args=SFTConfig(**settings, dataset_kwargs={"skip_prepare_dataset": True}), **given)
    except (ValueError, TypeError, NotImplementedError) as error:  # target modules that the base doesn't have
        raise TrainingStopped(f"this adapter can't be trained on {base.name}: {error}") from error


def _row(item: Learnt | Pair) -> dict[str, list[int]]:
    if isinstance(item, Learnt):
        return {"input_ids": item.ids, "labels": item.labels}
    return {"prompt_ids": item.prompt, "chosen_ids": item.chosen, "rejected_ids": item.rejected}


class _HeldOut:
    """What is held out, measured now and then under PEFT's own forward."""

    def __init__(
        self,
        run: AnyRun,
        model: Any,  # noqa: ANN401
        items: Sequence[Learnt | Pair],
        facts: dict[str, Any],
        *,
        from_base: bool,
    ) -> None:
        self._run, self._model, self._items = run, model, items
        self.points: Points = [(int(step), float(loss)) for step, loss in facts.get("held_out", [])]
        self._reference: Answers | None = None
        # A new adapter isn't quite without effect: DoRA's norms of a quantised base are rounded.
        with model.disable_adapter() if from_base else nullcontext():
            self.before = self.measure()
        if self.before is not None:
            self._reference = self.before.answers
            if not self.points:
                self.points.append((0, self.before.loss))

    def note(self, step: int) -> bool:
        """Measure after a step and keep the loss; False where it is known, or nothing is held out."""
        if step in dict(self.points) or (measured := self.measure()) is None:
            return False
        self.points.append((step, measured.loss))
        return True

    def measure(self) -> Measured | None:
        """None where nothing is held out."""
        if not self._items:
            return None
        training = self._model.training
        self._model.eval()
        try:
            return measure(self._run, self._logits, self._items, self._reference)
        finally:
            self._model.train(training)

    def _logits(self, ids: list[int]) -> Tensor:
        found: Tensor = self._model(input_ids=torch.tensor([ids], device=self._model.device), use_cache=False).logits[0]
        return found


class _Watching(TrainerCallback):  # type: ignore[misc]
    """Tells of steps, and seals checkpoints once they are written."""

    def __init__(self, watch: Watch, work: Work, held: _HeldOut, began: float) -> None:
        self._watch, self._work, self._held, self._began = watch, work, held, began

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:  # noqa: ANN401
        if "loss" in logs:
            self._watch(state.global_step, state.max_steps, logs["loss"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self._held.note(state.global_step)  # where a process ended between writing a checkpoint and measuring it

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._seal(folder, state.global_step)  # before measuring, which may fail for lack of memory
        if self._held.note(state.global_step):
            self._seal(folder, state.global_step)

    def _seal(self, folder: Path, step: int) -> None:
        self._work.seal(folder, {"step": step, "held_out": self._held.points, "seconds": self.seconds()})


def _save(model: Any, base: ResolvedModel, work: Work) -> None:  # noqa: ANN401
    """The adapter's two files, the same bytes for the same weights. Raises TrainingStopped, OSError."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise TrainingStopped(f"{name} has numbers that are none after the last step; give a lower learning_rate")
    shutil.rmtree(work.adapter, ignore_errors=True)
    model.save_pretrained(str(work.adapter), save_embedding_layers=False, selected_adapters=["default"])
    for path in work.adapter.iterdir():
        if path.is_file() and path.name not in (CONFIG_NAME, WEIGHTS_NAME):
            path.unlink()  # PEFT's model card is an empty form
    config = work.adapter / CONFIG_NAME
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields["base_model_name_or_path"] = base.name  # a name, not this machine's directory
    fields["inference_mode"] = True
    if isinstance(fields["target_modules"], list):
        fields["target_modules"].sort()  # PEFT keeps them in a set, whose order changes from run to run
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _quieten() -> None:
    """Libraries' own words about their own use; what a user can change is said by this project."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(peft|trl|transformers|torch|datasets|accelerate)\b.*")
