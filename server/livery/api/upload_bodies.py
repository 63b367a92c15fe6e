"""What uploads look like, for the API's description (GET /openapi.json). These go to the decorators of routes."""

from __future__ import annotations

from typing import Any

from livery.api.adapter_bodies import CheckBody

_FILES = {
    "adapter_config.json": {"type": "string"},
    "adapter_model.safetensors": {"type": "string", "format": "binary"},
}
_MULTIPART = {"multipart/form-data": {"schema": {"type": "object", "required": list(_FILES), "properties": _FILES}}}
_SOURCE = {"application/json": {"schema": CheckBody.model_json_schema()}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
UPLOAD_OR_WEIGHTS: dict[str, Any] = {"requestBody": {"required": True, "content": _MULTIPART | _BYTES}}
UPLOAD_OR_SOURCE: dict[str, Any] = {"requestBody": {"required": True, "content": _MULTIPART | _SOURCE}}
