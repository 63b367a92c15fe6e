"""Routes that manage adapters and aliases, and vLLM's two verbs for loading and unloading.

The verb of a route is its last segment, since names may hold slashes: longer paths come first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from livery.adding import AddOptions, Running
from livery.api.adapter_bodies import (
    ActivateBody,
    AliasBody,
    CheckBody,
    GenerationOnly,
    ProfileBody,
    PutAdapterBody,
    ShareBody,
    profile_text,
)
from livery.api.answers import (
    Adapter,
    AdapterList,
    AdapterProfile,
    AliasList,
    AliasView,
    CheckedAdapter,
    DeletedAlias,
    DeletedModel,
    Leaving,
    Shared,
    VersionList,
    answers,
    plain,
)
from livery.api.context import ManagedDep
from livery.api.preconditions import UNCONDITIONAL, PreconditionDep, with_tag
from livery.api.responses import json_response
from livery.api.schemas import LoadLoraBody, UnloadLoraBody
from livery.api.strict_route import StrictRoute
from livery.api.upload_bodies import UPLOAD_OR_SOURCE, UPLOAD_OR_WEIGHTS
from livery.api.uploads import announced_size, body_pieces, is_upload, is_weights, uploaded
from livery.management import MAX_DRAIN_S, MAX_PAGE
from livery.pushing import Weights
from livery.refusals import AdapterFieldEmpty, UnsupportedParameter
from livery_adapters.registry import State

router = APIRouter(route_class=StrictRoute)

ACCEPTED = 202
MOST_VERSIONS = 1 << 31  # of one name

Expected = Annotated[int | None, Query(ge=0)]


@router.get("/v1/adapters", responses=answers(AdapterList))
async def list_adapters(
    managed: ManagedDep,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    state: State | None = None,
    source: str | None = None,
    search: str | None = None,
    tenant: str | None = None,
) -> Response:
    """What the key may use, by the names it knows; `tenant`, an operator's choice: what belongs to this one."""
    found = managed.ls(after=after, limit=limit, state=state, source=source, search=search, tenant=tenant)
    return json_response(await found)


@router.post("/v1/adapters:check", responses=answers(CheckedAdapter), openapi_extra=UPLOAD_OR_SOURCE)
async def check_adapter(
    request: Request,
    managed: ManagedDep,
    approximate: Annotated[int | None, Query(ge=1, le=4096)] = None,
) -> Response:
    """A dry run: the coverage report, or why the adapter would be refused. JSON names a source, multipart brings it."""
    if is_upload(request.headers.get("content-type", "")):
        return json_response(await managed.check_upload(uploaded(request), approximate=approximate or 0))
    body = CheckBody.parse(await request.body())
    return json_response(await managed.check(body.source, approximate=body.approximate or 0))


@router.get("/v1/adapters/{name:path}/versions", responses=answers(VersionList))
async def list_versions(
    name: str,
    managed: ManagedDep,
    after: Annotated[int | None, Query(ge=0, le=MOST_VERSIONS)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> Response:
    """Newest first; `after`: only what is older than this version."""
    return json_response(await managed.versions(name, after=after, limit=limit))


@router.post("/v1/adapters/{name:path}/versions", responses=answers(Adapter), openapi_extra=UPLOAD_OR_WEIGHTS)
async def upload_version(
    name: str,
    request: Request,
    managed: ManagedDep,
    match: PreconditionDep,
    pinned: bool | None = None,
    expected_generation: Expected = None,
    approximate: Annotated[int | None, Query(ge=1, le=4096)] = None,
    activate: bool = True,
    profile: Annotated[str | None, Query(max_length=4096)] = None,
    keep: Annotated[int | None, Query(ge=1, le=MOST_VERSIONS)] = None,
    running: Running = "finish",
) -> Response:
    """Take in the files of a multipart body as they arrive, or new weights alone for the active version's configuration
    and profile. `profile`, a JSON object, replaces the profile; `keep`: so many of the newest versions stay; `running`:
    whether the caller's requests on older versions finish there, or end with what they have.
    """
    chosen = None if profile is None else profile_text(profile)
    alone = is_weights(request.headers.get("content-type", ""))
    body = Weights(body_pieces(request), announced_size(request)) if alone else uploaded(request)
    with match.expecting(expected_generation) as expected:
        options = AddOptions(pinned, expected, approximate or 0, activate, chosen, keep=keep or 0, running=running)
        return with_tag(await managed.upload(name, body, options))


@router.post("/v1/adapters/{name:path}/activate", responses=answers(Adapter))
async def activate(name: str, body: ActivateBody, managed: ManagedDep, match: PreconditionDep) -> Response:
    with match.expecting(body.expected_generation) as expected:
        return with_tag(await managed.activate(name, str(body.version), expected))


@router.post("/v1/adapters/{name:path}/rollback", responses=answers(Adapter))
async def rollback(
    name: str, managed: ManagedDep, match: PreconditionDep, body: GenerationOnly | None = None
) -> Response:
    with match.expecting(body.expected_generation if body else None) as expected:
        return with_tag(await managed.rollback(name, expected))


@router.post("/v1/adapters/{name:path}/prefetch", responses=answers(Adapter), dependencies=[UNCONDITIONAL])
async def prefetch(name: str, managed: ManagedDep) -> Response:
    return json_response(await managed.prefetch(name))


@router.post("/v1/adapters/{name:path}/pin", responses=answers(Adapter), dependencies=[UNCONDITIONAL])
async def pin(name: str, managed: ManagedDep) -> Response:
    return json_response(await managed.pin(name, True))


@router.post("/v1/adapters/{name:path}/unpin", responses=answers(Adapter), dependencies=[UNCONDITIONAL])
async def unpin(name: str, managed: ManagedDep) -> Response:
    return json_response(await managed.pin(name, False))


@router.post("/v1/adapters/{name:path}/share", responses=answers(Shared), dependencies=[UNCONDITIONAL])
async def share(name: str, body: ShareBody, managed: ManagedDep) -> Response:
    """Let another tenant use the adapter, by its name in full, until it is deleted."""
    return json_response(await managed.share(name, body.tenant))


@router.post("/v1/adapters/{name:path}/unshare", responses=answers(Shared), dependencies=[UNCONDITIONAL])
async def unshare(name: str, body: ShareBody, managed: ManagedDep) -> Response:
    return json_response(await managed.share(name, body.tenant, shared=False))


@router.get("/v1/adapters/{name:path}/profile", responses=answers(AdapterProfile))
async def show_profile(name: str, managed: ManagedDep) -> Response:
    return with_tag(await managed.profile(name))


@router.put("/v1/adapters/{name:path}/profile", responses=answers(Adapter))
async def set_profile(name: str, body: ProfileBody, managed: ManagedDep, match: PreconditionDep) -> Response:
    """Replace the whole profile: a new version over the same weights."""
    with match.expecting(body.expected_generation) as expected:
        return with_tag(await managed.set_profile(name, body.read(), expected))


@router.get("/v1/adapters/{name:path}", responses=answers(Adapter))
async def show_adapter(name: str, managed: ManagedDep) -> Response:
    return with_tag(await managed.show(name))


@router.put("/v1/adapters/{name:path}", responses=answers(Adapter))
async def put_adapter(name: str, body: PutAdapterBody, managed: ManagedDep, match: PreconditionDep) -> Response:
    with match.expecting(body.expected_generation) as expected:
        options = replace(body.options(), expected_generation=expected)
        return with_tag(await managed.put(name, body.source, options))


@router.delete("/v1/adapters/{name:path}", responses=answers(Leaving, ACCEPTED))
async def delete_adapter(
    name: str,
    managed: ManagedDep,
    match: PreconditionDep,
    drain: Annotated[float, Query(ge=0, le=MAX_DRAIN_S, allow_inf_nan=False)] = 0.0,
    expected_generation: Expected = None,
) -> Response:
    """202 while requests are under way, which finish; 200 once none is. `drain`: seconds to wait for that."""
    with match.expecting(expected_generation) as expected:
        answer = await managed.retire(name, drain_s=drain, expected_generation=expected)
    return json_response(answer, ACCEPTED if answer["state"] == "draining" else 200)


@router.get("/v1/aliases", responses=answers(AliasList))
async def list_aliases(
    managed: ManagedDep,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    tenant: str | None = None,
) -> Response:
    """The tenant's own aliases; `tenant`, an operator's choice: those of this one."""
    return json_response(await managed.aliases(tenant, after=after, limit=limit))


@router.get("/v1/aliases/{name:path}", responses=answers(AliasView))
async def show_alias(name: str, managed: ManagedDep) -> Response:
    return with_tag(await managed.alias(name))


@router.put("/v1/aliases/{name:path}", responses=answers(AliasView))
async def put_alias(name: str, body: AliasBody, managed: ManagedDep, match: PreconditionDep) -> Response:
    targets = [(target.adapter, target.weight) for target in body.targets]
    with match.expecting(body.expected_generation) as expected:
        return with_tag(await managed.set_alias(name, targets, body.sticky, expected))


@router.delete("/v1/aliases/{name:path}", responses=answers(DeletedAlias))
async def delete_alias(
    name: str, managed: ManagedDep, match: PreconditionDep, expected_generation: Expected = None
) -> Response:
    with match.expecting(expected_generation) as expected:
        return json_response(await managed.delete_alias(name, expected))


@router.delete("/v1/models/{model:path}", responses=answers(DeletedModel))
async def delete_model(model: str, managed: ManagedDep, match: PreconditionDep) -> Response:
    """As OpenAI's client deletes a fine-tuned model."""
    with match.expecting(None) as expected:
        await managed.retire(model, expected_generation=expected)
    return json_response({"id": model, "object": "model", "deleted": True})


@router.post(
    "/v1/load_lora_adapter",
    response_class=Response,
    dependencies=[UNCONDITIONAL],
    responses=plain("The adapter is served.", "Success: LoRA adapter 'sql' added successfully."),
)
async def load_lora_adapter(body: LoadLoraBody, managed: ManagedDep) -> Response:
    managed.check_operator()
    if body.is_3d_lora_weight:
        raise UnsupportedParameter("Adapters with 3-D weights are not supported.", "is_3d_lora_weight")
    if not body.lora_name or not body.lora_path:
        empty = "lora_path" if body.lora_name else "lora_name"
        raise AdapterFieldEmpty("Both 'lora_name' and 'lora_path' must be provided.", empty)
    await managed.load(body.lora_name, body.lora_path, in_place=body.load_inplace)
    return _text(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post(
    "/v1/unload_lora_adapter",
    response_class=Response,
    dependencies=[UNCONDITIONAL],
    responses=plain("The adapter is gone.", "Success: LoRA adapter 'sql' removed successfully."),
)
async def unload_lora_adapter(body: UnloadLoraBody, managed: ManagedDep) -> Response:
    if not body.lora_name:
        raise AdapterFieldEmpty("'lora_name' needs to be provided to unload a LoRA adapter.", "lora_name")
    await managed.unload(body.lora_name)
    return _text(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _text(words: str) -> Response:
    return Response(words, media_type="text/plain")
