"""Every knob of the server, once. Flags win over LIVERY_* variables, and those over a YAML file.

Read once, at the start, by the command line; nothing changes it, and no other module reads a knob from the environment.
What others look up there is no knob of a server's: the cache (LIVERY_CACHE), whom a command asks (LIVERY_URL), the
compiler (CXX), a server's address file (LIVERY_ADDRESS_FILE, for `livery ready`), and credentials by the names that
stores, hubs and collectors gave them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr, ValidationError

from livery.tenancy import MAX_KEY
from livery_adapters.refusal import DEFAULT_LIMITS, Limits

PREFIX = "LIVERY_"
PORT = 8000
# What browsers send as an origin: no path, and where there is a host name it is in ASCII.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
Port = Annotated[int, Field(ge=0, le=65535)]
Level = Literal["debug", "info", "warning", "error"]


class SettingsError(Exception):
    """A knob has a value that can't be used; the message names the knob, the value and the remedy."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _list(value: object) -> object:
    """Flags and variables hold one text; a YAML file may hold a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _words(value: object) -> object:
    """A flag may be repeated, a YAML file holds a list, a variable one text of words, quoted where they have spaces."""
    return shlex.split(value) if isinstance(value, str) else value


def _strip(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _expand(folder: Path) -> Path:
    """A shell expands `~` in an argument of its own, not in a variable, a file or `--flag=~/folder`."""
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error}; write the whole path") from None


def _root_path(path: str) -> str:
    if path and (not path.startswith("/") or not path.isascii() or not path.isprintable()):
        raise ValueError("it must begin with a slash, as in /llm")
    if path.startswith("/v1"):
        raise ValueError("it must not begin with /v1, which is where the API's own paths begin")
    return path.rstrip("/")


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Browsers write scheme and host in small letters, and origins are compared as texts."""
    lowered = tuple(origin.lower() for origin in origins)
    for origin in lowered:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is no origin; write scheme://host or scheme://host:port without a slash at the end, "
                "as in https://app.example, or * for all"
            )
    return lowered


def _key(key: SecretStr | None) -> SecretStr | None:
    if key is not None and len(key.get_secret_value().encode()) > MAX_KEY:
        raise ValueError(f"a key has at most {MAX_KEY} bytes")
    return key


Folder = Annotated[Path, AfterValidator(_expand)]
# Outer spaces and line ends don't survive a header.
SecretKey = Annotated[SecretStr | None, BeforeValidator(_strip), AfterValidator(_key)]


class Settings(BaseModel):
    """Descriptions are the command line's help, so they say what to write."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(description="Base model: a directory, a .gguf file, a hub id, or smollm2-135m-instruct")
    served_model_name: str | None = Field(None, min_length=1, description="Name clients use for the base model")
    adapters: Folder | None = Field(None, description="Folder whose subfolders are served as adapters")
    data: Folder | None = Field(None, description="Folder for all the server keeps; one per port or socket otherwise")
    registry: str | None = Field(None, min_length=1, description="postgresql:// URL; a SQLite file in --data otherwise")
    blob_store: str | None = Field(
        None,
        min_length=1,
        description="Where servers of one --registry share adapter files: s3://bucket/prefix, gs:// or az://",
    )
    allow_source: Annotated[tuple[str, ...], BeforeValidator(_list)] = Field(
        (),
        description="Where the API may add adapters from, as in hf://my-org/,s3://bucket/{tenant}/; comma-separated. "
        "Tenants may use only those with {tenant} in them",
    )
    keep_versions: int = Field(10, ge=0, description="Versions kept per adapter for rolling back; 0: all")
    usage_days: int = Field(400, ge=0, le=36_500, description="Days that usage is kept; 0: for ever")
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on")
    port: Port = Field(PORT, description="Port to listen on; 0 takes a free one")
    uds: Folder | None = Field(None, description="Unix socket to listen on; not beside --host or --port")
    address_file: Folder | None = Field(None, description="File for `livery ready`, written with where this listens")
    ssl_certfile: Folder | None = Field(None, description="Certificate chain in PEM; serves https")
    ssl_keyfile: Folder | None = Field(None, description="Key of --ssl-certfile in PEM, without a passphrase")
    root_path: Annotated[str, AfterValidator(_root_path)] = Field(
        "", description="Path under which a proxy shows this server, as in /llm"
    )
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_list), AfterValidator(_origins)] = Field(
        (), description="Origins whose web pages may call this server; comma-separated, * for all"
    )
    api_key: SecretKey = Field(
        None, min_length=1, description="The operator's own key, beside those that livery keys create makes"
    )
    metrics_key: SecretKey = Field(None, min_length=1, description="Key for /metrics, which opens nothing else")
    metrics_without_key: bool = Field(
        False, description="Answer /metrics to whoever reaches --port, for scrapers that can't send a key"
    )
    admin_port: Port | None = Field(None, description="Port of the admin API for tenants and keys; off unless given")
    admin_host: str = Field("127.0.0.1", min_length=1, description="Address of the admin API")
    admin_uds: Folder | None = Field(None, description="Unix socket of the admin API, in place of --admin-port")
    admin_key: SecretKey = Field(None, min_length=1, description="Key that opens the admin API, and nothing else")
    insecure_no_auth: bool = Field(False, description="Listen beyond this machine without a key")
    max_model_len: int = Field(0, ge=0, description="Longest prompt and answer together, in tokens; 0: the model's")
    kv_memory: ByteSize = Field(ByteSize(0), ge=0, description="Memory for the KV cache, as in 4GiB; 0: chosen")
    adapter_memory: ByteSize = Field(
        ByteSize(0), ge=0, description="Memory for adapters in use, as in 512MiB; 0: chosen"
    )
    host_adapter_memory: ByteSize = Field(
        ByteSize(0), ge=0, description="Host memory for adapters not in use, as in 8GiB; 0: chosen"
    )
    max_batch_tokens: int = Field(0, ge=0, description="Most tokens computed in one step; 0: chosen")
    max_running: int = Field(64, ge=1, le=4096, description="Most sequences computed together")
    max_open: int = Field(1024, ge=1, description="Most sequences running and waiting; more are answered 503")
    max_queued_tokens: int = Field(
        0, ge=0, description="Most prompt tokens waiting for their answers to begin; more are answered 503; 0: chosen"
    )
    max_rank: int = Field(DEFAULT_LIMITS.max_rank, ge=1, description="Highest rank an adapter may have")
    max_adapter_bytes: ByteSize = Field(
        ByteSize(DEFAULT_LIMITS.max_weight_bytes), ge=1, description="Most bytes of an adapter's weights, as in 8GiB"
    )
    speculate: int = Field(
        0, ge=0, le=64, description="Most tokens guessed ahead per answer and step, from its own text; 0: none"
    )
    engine: Literal["livery", "vllm"] = Field("livery", description="livery, or vllm where vLLM 0.32 is installed")
    vllm_arg: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (),
        description="KEY=VALUE for vLLM, of its engine arguments that no knob here sets, as in tensor_parallel_size=2; "
        "may be repeated",
        json_schema_extra={"repeatable": True},
    )
    max_loras: int = Field(0, ge=0, description="Most adapters in a batch of vLLM; 0: by how many are registered")
    max_lora_rank: int = Field(0, ge=0, le=512, description="Highest rank in vLLM; 0: by those registered, at least 16")
    max_cpu_loras: int = Field(0, ge=0, description="Most adapters in vLLM's host memory; 0: by those registered")
    threads: int = Field(0, ge=0, description="Threads of the engine on CPU; 0: measured at start")
    device: str = Field("auto", pattern=r"auto|cpu|cuda(:\d+)?", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto, float32 or bfloat16; float16 with --engine vllm"
    )
    weights: Literal["auto", "fp32", "bf16", "int8", "int4"] = Field(
        "auto", description="How weights are held on CPU: auto loses nothing; int8 and int4 round where need be"
    )
    quantization: Literal[
        "auto", "bnb-nf4", "bnb-nf4-double", "bnb-int8", "torchao-int8", "torchao-int4", "torchao-fp8"
    ] = Field(
        "auto",
        description="auto: as the checkpoint is; else a library's form that the base is quantised to while it loads; "
        "needs livery[quantization]; bnb-int8 and torchao-int4 are untested, as are checkpoints in GPTQ, AWQ, HQQ, "
        "quanto, fp8 and fp4",
    )
    kernels: Literal["auto", "torch"] = Field("auto", description="auto, or torch for plain torch operations")
    graphs: Literal["auto", "off"] = Field("auto", description="auto: decoding steps as CUDA graphs on GPUs; or off")
    prefix_cache: bool = Field(
        True,
        description="Compute what prompts begin with once per adapter, for all behind one key; cache_salt keeps apart",
    )
    decoder: Literal["auto", "transformers"] = Field(
        "auto", description="auto, or transformers for the model's own forward instead of the fused one"
    )
    deterministic: bool = Field(False, description="Same bits for a request whatever runs beside it; CPU, float32")
    request_timeout: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Most seconds a request may take, and what it gets when it names none; 0: any",
    )
    strict_params: bool = Field(False, description="Refuse requests with unknown fields instead of ignoring those")
    adapter_templates: bool = Field(
        True, description="Render the chat templates that profiles of adapters ask for, each in a process shut in"
    )
    poll_adapters: bool = Field(False, description="Look at the adapter folder instead of waiting for events")
    api_workers: int = Field(
        1, ge=1, le=64, description="Processes that serve HTTP over the one engine; more where one core isn't enough"
    )
    max_connections: int = Field(0, ge=0, description="Most connections at once; 0: as many as descriptors allow")
    keep_alive: int = Field(
        75,
        ge=1,
        le=86_400,
        description="Seconds that a connection may be idle; longer than the proxy in front reuses one (Envoy: an hour)",
    )
    max_body: ByteSize = Field(
        ByteSize(2 << 20),
        ge=1 << 16,
        le=32 << 20,
        description="Most bytes of a request's body, as in 4MiB; four times as many for embeddings, classes and scores",
    )
    engine_restarts: int = Field(
        5, ge=0, description="Times within ten minutes that a lost engine is started anew; 0: its end is the server's"
    )
    hang_timeout: float = Field(
        4.0,
        ge=2,
        description="Seconds without a sign of life after which the engine, or an API worker, is restarted; vLLM's "
        "engine after 15 times as many",
    )
    drain_timeout: int = Field(30, ge=0, description="Seconds that requests may still take after SIGTERM")
    tool_parser: Literal["auto", "none", "hermes", "llama3_json", "mistral", "phi4_mini_json", "qwen3_coder"] = Field(
        "auto",
        description="How the model writes tool calls; auto: as its chat template does. A name also tells models whose "
        "template has no place for tools, in the system message",
    )
    reasoning_parser: Literal["auto", "none", "think", "mistral"] = Field(
        "auto", description="How the model marks its reasoning; auto: as its chat template does"
    )
    metrics_max_adapters: int = Field(200, ge=0, description="Adapters with metrics of their own; the rest add up")
    log_level: Annotated[Level, BeforeValidator(_lower)] = Field("info", description="debug, info, warning or error")

    otlp_endpoint: str | None = Field(
        None,
        pattern=r"https?://\S+",
        description="OTLP/HTTP collector for each request's trace; needs livery[otel]",
    )
    log_format: Literal["text", "json"] = Field("text", description="text for people, or json: an object a line")

    @property
    def data_folder(self) -> Path:
        """Where this server keeps its copies: a folder for each port and each Unix socket, unless --data names one.

        Servers on --port 0 are told apart by nothing that a later start would know again: they share `port-0`.
        """
        if self.data is not None:
            return self.data
        if self.uds is None:
            return usual_data_folder(self.port)
        path = os.path.abspath(self.uds)
        return _data_home() / f"socket-{self.uds.stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"

    @property
    def adapter_limits(self) -> Limits:
        """What one adapter may ask for when it is taken in."""
        return Limits(max_rank=self.max_rank, max_weight_bytes=int(self.max_adapter_bytes))


def as_told(settings: Settings) -> dict[str, object]:
    """The settings as another process of this server reads them, secrets too: for a pipe, never for arguments."""
    return {name: _plain(getattr(settings, name)) for name in Settings.model_fields}


def _plain(value: object) -> object:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, ByteSize):
        return int(value)
    return str(value) if isinstance(value, Path) else value


def usual_data_folder(port: int = PORT) -> Path:
    """Where a server on this port keeps its copies that was given no folder."""
    return _data_home() / f"port-{port}"


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "livery"


def revealed(key: SecretStr | None) -> str | None:
    """A key as it is sent."""
    return key.get_secret_value() if key is not None else None


def load_settings(flags: Mapping[str, object], environ: Mapping[str, str], config_file: Path | None = None) -> Settings:
    """Merge the three sources; a flag of None was not given. Raises SettingsError."""
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for name, value in (_read_file(config_file) if config_file else {}).items():
        values[name], origins[name] = value, f"{name} in {config_file}"
    for name in Settings.model_fields:
        variable = PREFIX + name.upper()
        if environ.get(variable):
            values[name], origins[name] = environ[variable], variable
        if flags.get(name) is not None:
            values[name], origins[name] = flags[name], flag(name)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(issue, origins) for issue in error.errors())) from None
    if settings.uds is not None:
        _refuse_two_addresses(flags, origins)
    if settings.admin_uds is not None and settings.admin_port is not None:
        raise SettingsError(
            f"{origins['admin_uds']} and {origins['admin_port']} are both given, and the admin API listens in one "
            "place; leave one out"
        )
    return settings


def _refuse_two_addresses(flags: Mapping[str, object], origins: Mapping[str, str]) -> None:
    """A socket takes the place of an address in a variable, which an image may set for all, or below it in rank."""
    for name in ("host", "port"):
        in_one_file = all(origins.get(knob, "").startswith(f"{knob} in ") for knob in (name, "uds"))
        if flags.get(name) is not None or in_one_file:
            raise SettingsError(
                f"{origins['uds']} and {origins[name]} are both given, and a server listens in one place; leave one out"
            )


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def is_service_link(value: object) -> bool:
    """Whether a variable's value is the address that Kubernetes puts there for a Service, as in LIVERY_PORT."""
    return isinstance(value, str) and _SERVICE_LINK.fullmatch(value) is not None


def _read_file(file: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {file} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {file} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config {file} must be a list of knobs, as in `port: 8001`")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _explain(issue: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    name = str(issue["loc"][0])
    if issue["type"] == "missing":
        return f"{flag(name)} is needed. {Settings.model_fields[name].description}"
    if issue["type"] == "extra_forbidden":
        return f"{origins[name]}: there is no such knob; `livery serve --help` lists them"
    shown = "(hidden)" if name.endswith("_key") else repr(issue["input"])
    told = f"{origins[name]} is {shown}: {issue['msg']}. {Settings.model_fields[name].description}"
    if origins[name].startswith(PREFIX) and is_service_link(issue["input"]):
        told += (
            f". Kubernetes sets {origins[name]} for a Service of that name: say `enableServiceLinks: false` in the "
            f"pod, or give {flag(name)}"
        )
    return told
