"""What an adapter was trained to give: text, embeddings, or classes by a head of its own. No torch.

PEFT says it by `task_type`, by the file's head (`modules_to_save` of a sequence classifier), and by names: an adapter
trained on a model without its language head (AutoModel) names modules from that inner model on, "layers.0." for
"model.layers.0.".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from livery_adapters.base_model import BaseModel
from livery_adapters.layout import AdapterManifest, FullTensor, Task
from livery_adapters.peft_config import bad_field
from livery_adapters.refusal import AdapterRefused

HEAD = "score"  # what every decoder for sequence classification in transformers calls its head, which has no bias
MAX_LABELS = 4096
_BY_TYPE: Mapping[object, Task] = {
    None: "generate",
    "CAUSAL_LM": "generate",
    "FEATURE_EXTRACTION": "embed",
    "SEQ_CLS": "classify",
}
_UNSERVED = {"TOKEN_CLS": "a class for every token", "QUESTION_ANS": "the places of an answer in its text"}


def task_of(task_type: object, head: FullTensor | None) -> Task:
    """What `task_type` of the configuration and the file's head say. Raises AdapterRefused."""
    if task_type is not None and not isinstance(task_type, str):
        raise bad_field("task_type", task_type, "one of PEFT's task types, such as 'CAUSAL_LM'")
    if task_type in _UNSERVED:
        raise AdapterRefused(
            "unsupported_task",
            f"task_type is {task_type!r}: {_UNSERVED[task_type]} can't be served; adapters for text (CAUSAL_LM), "
            "embeddings (FEATURE_EXTRACTION) and sequence classification (SEQ_CLS) are",
        )
    task = _BY_TYPE.get(task_type, "generate")
    if head is None and task == "classify":
        raise AdapterRefused(
            "missing_tensor",
            f"task_type is SEQ_CLS and the file has no {HEAD}.weight, the trained head: without it classes would be "
            f"drawn at random; save the adapter again with {HEAD!r} in modules_to_save",
        )
    if head is not None and task_type in ("CAUSAL_LM", "FEATURE_EXTRACTION"):
        raise AdapterRefused(
            "unsupported_combination",
            f"task_type is {task_type!r} and the file has {head.entry.name}, the head of a classifier; correct "
            "task_type to 'SEQ_CLS', or save the adapter without the head",
        )
    return task if head is None else "classify"


def type_of(task: Task) -> str:
    """PEFT's `task_type` for what an adapter gives."""
    return next(name for name, known in _BY_TYPE.items() if isinstance(name, str) and known == task)


def taken_out(full: Iterable[FullTensor]) -> tuple[FullTensor | None, tuple[FullTensor, ...]]:
    """A classifier's head among the file's complete parameters, and the others."""
    found = tuple(full)
    head = next((one for one in found if one.path == f"{HEAD}.weight"), None)
    return head, tuple(one for one in found if one is not head)


def placed(manifest: AdapterManifest, base: BaseModel) -> AdapterManifest:
    """The manifest with modules named as the whole base names them; what was trained on its inner model embeds."""
    inner, paths = base.shapes.backbone, [*(t.path for t in manifest.targets), *(f.module for f in manifest.full)]
    there = {*base.modules, *base.shapes.plain, *base.shapes.experts}
    if not inner or there.intersection(paths) or not there.intersection(f"{inner}.{path}" for path in paths):
        return manifest
    return replace(
        manifest,
        task="embed" if manifest.task == "generate" else manifest.task,
        targets=tuple(replace(target, module=f"{inner}.{target.module}") for target in manifest.targets),
        full=tuple(replace(full, module=f"{inner}.{full.module}") for full in manifest.full),
    )


def check_head(head: FullTensor, base: BaseModel) -> None:
    """Does a classifier's head fit the base's hidden states? Raises AdapterRefused."""
    shape, width = head.entry.shape, base.shapes.hidden_size
    if len(shape) != 2 or not shape[0] or (width and shape[1] != width):
        raise AdapterRefused(
            "wrong_shape",
            f"{head.entry.name} is {list(shape)} and a head over the hidden states of {base.name!r} is [labels, "
            f"{width or 'hidden size'}]; use an adapter trained on this base",
        )
    if shape[0] > MAX_LABELS:
        raise AdapterRefused(
            "wrong_shape", f"{head.entry.name} has {shape[0]} labels; at most {MAX_LABELS} can be served"
        )
