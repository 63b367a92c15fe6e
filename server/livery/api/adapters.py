"""Routes about adapters: what is served, and vLLM's two verbs for loading and unloading."""

from __future__ import annotations

from fastapi import APIRouter, Response

from livery.api.context import ContextDep
from livery.api.responses import json_response
from livery.api.schemas import LoadLoraBody, UnloadLoraBody
from livery.refusals import AdapterFieldEmpty, UnknownModel, UnsupportedParameter
from livery_adapters.registry import AdapterRecord

router = APIRouter()


@router.get("/v1/adapters")
async def list_adapters(context: ContextDep) -> Response:
    adapters = context.service.adapters
    resident = set((await context.service.snapshot()).resident)
    data = [adapter_json(record, record.name in resident) for record in adapters.records()]
    return json_response({"object": "list", "base": context.service.base_name, "data": data})


@router.get("/v1/adapters/{name:path}")
async def show_adapter(name: str, context: ContextDep) -> Response:
    if name == context.service.base_name:
        raise UnknownModel(name)  # the base is a model, not an adapter
    record = context.service.adapters.record(name)
    resident = (await context.service.snapshot()).resident
    return json_response(adapter_json(record, name in resident))


@router.post("/v1/load_lora_adapter")
async def load_lora_adapter(body: LoadLoraBody, context: ContextDep) -> Response:
    if body.is_3d_lora_weight:
        raise UnsupportedParameter("Adapters with 3-D weights are not supported.", "is_3d_lora_weight")
    if not body.lora_name or not body.lora_path:
        empty = "lora_path" if body.lora_name else "lora_name"
        raise AdapterFieldEmpty("Both 'lora_name' and 'lora_path' must be provided.", empty)
    await context.service.adapters.load(body.lora_name, body.lora_path, in_place=body.load_inplace)
    return _text(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter")
async def unload_lora_adapter(body: UnloadLoraBody, context: ContextDep) -> Response:
    if not body.lora_name:
        raise AdapterFieldEmpty("'lora_name' needs to be provided to unload a LoRA adapter.", "lora_name")
    context.service.adapters.unload(body.lora_name)
    return _text(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def adapter_json(record: AdapterRecord, resident: bool) -> dict[str, object]:
    """One adapter as shown by the API and the command line; sizes in bytes, `created` a Unix time."""
    shown: dict[str, object] = {
        "name": record.name,
        "state": record.state,
        "source": record.source,
        "requests": record.leases,
        "resident": resident,
        "error": record.error,
        "error_code": record.error_code,
    }
    if record.version is not None:
        shown |= {
            "digest": record.version.digest,
            "created": int(record.version.created),
            "config": dict(record.version.manifest.facts),
            "coverage": record.version.coverage.to_dict(),
        }
    return shown


def _text(words: str) -> Response:
    return Response(words, media_type="text/plain")
