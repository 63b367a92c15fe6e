"""The adapter that a run goes on training, where its file names one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from livery.training.run_file import AnyRun, SpecInvalid
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import TAKEN_IN, AdapterRefused
from livery_adapters.tensor_file import CONFIG_NAME
from livery_adapters.types.lora import LoraSettings


@dataclass(frozen=True, slots=True)
class Start:
    """Its directory, the digest of its two files, its highest rank."""

    path: Path
    digest: str
    rank: int


def find_start(run: AnyRun, folder: Path) -> Start | None:
    """`folder` is that of the run's file. Reads all of the weights. Raises SpecInvalid."""
    if not run.start_from:
        return None
    path = folder / Path(run.start_from).expanduser()
    try:
        manifest = read_manifest(path, TAKEN_IN)
    except AdapterRefused as refused:
        raise SpecInvalid(f"start_from is {run.start_from}, and {path} can't be gone on with: {refused}") from refused
    if manifest.peft_type != "LORA" or manifest.invocation or manifest.task != "generate":
        kind = "an activated LoRA" if manifest.invocation else f"{manifest.peft_type} for the task {manifest.task}"
        raise SpecInvalid(
            f"start_from is {run.start_from}, and {path} is {kind}: a run goes on training LORA that generates; "
            "name another, or leave start_from out"
        )
    settings = manifest.settings
    if isinstance(settings, LoraSettings) and settings.init != "plain":
        raise SpecInvalid(
            f"start_from is {run.start_from}, and init_lora_weights in {path / CONFIG_NAME} is {settings.init}: it is "
            "for a base with weights taken out, and training it further would take them out again; have PEFT convert "
            "it first, with save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL_ADAPTER_DIR)"
        )
    return Start(path, manifest.digest, manifest.max_rank)
