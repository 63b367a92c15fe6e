"""Evaluation by a running server: which versions it has, and its own engine for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx

from livery.adapter_views import Json
from livery.commands.asking import CommandFailed, http_client
from livery.commands.backends import DEFAULT_URL, Backend, HttpBackend
from livery.evaluation.by_server import ServerScorer, ServerUnable
from livery.evaluation.evaluate import Progress, evaluate
from livery.evaluation.lm_eval_tasks import LmEvalTasks
from livery.evaluation.pieces import Windows
from livery.evaluation.report import Report
from livery.evaluation.scorer import BASE_LABEL, Variant
from livery.evaluation.subjects import Subject
from livery_adapters.profile import Bounds, ProfileInvalid, recorded_profile

PAGE = 1000  # of a list
_PIN = 16  # digits of a digest


async def evaluate_there(
    url: str,
    key: str | None,
    names: Sequence[str],
    subjects: Sequence[Subject],
    windows: Windows,
    lm_eval: LmEvalTasks | None,
    progress: Progress,
) -> Report:
    """The server's base, and the adapters or versions of this name (all active ones, if none) beside what is active.

    Raises CommandFailed, AdapterRefused for unknown names, SubjectUnusable.
    """
    async with scoring(url, key, names) as (scorer, variants, base):
        return await evaluate(
            scorer,
            variants,
            subjects,
            base=base,
            base_digest=variants[0].digest,
            where=url,
            windows=windows,
            lm_eval=lm_eval,
            progress=progress,
        )


@asynccontextmanager
async def scoring(
    url: str, key: str | None, names: Sequence[str]
) -> AsyncIterator[tuple[ServerScorer, list[Variant], str]]:
    """A server's scorer, its base and the adapters as in `evaluate_there`, and what it calls its base.

    Raises CommandFailed, AdapterRefused.
    """
    async with http_client(url, key, DEFAULT_URL) as client:
        backend = HttpBackend(client, url)
        base, longest, digest = await _base(client, url)
        variants = [Variant(BASE_LABEL, role="base", digest=digest)]
        bounds: dict[str, Bounds] = {}
        for variant, profile in await _variants(backend, names):
            if variant.label not in {one.label for one in variants}:
                variants.append(variant)
                bounds[variant.label] = _bounds(profile)
        models = {one.label: f"{one.name}@{one.digest[:_PIN]}" if one.name else base for one in variants}
        try:
            yield ServerScorer(client, models, base, longest, bounds), variants, base
        except ServerUnable as unable:
            raise CommandFailed(str(unable)) from None


async def _base(client: httpx.AsyncClient, url: str) -> tuple[str, int, str]:
    """Its name, the most tokens it takes, its digest. Raises CommandFailed."""
    try:
        answer = await client.get("/v1/models")
        cards = answer.json()["data"] if answer.is_success else []
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise CommandFailed(
            f"no answer from {url} that says which models it has ({error or type(error).__name__}); is `livery serve` "
            "running there?"
        ) from None
    base = next((card for card in cards if not card.get("parent")), None)
    if base is None:
        raise CommandFailed(
            f"{url} shows this key no base model to compare adapters with; give a key that may ask it with --key"
        )
    return base["id"], base["max_model_len"], base.get("digest") or ""


def _bounds(profile: Json) -> Bounds:
    """As far as this key is told them, and they can be read: a newer server's may say more."""
    try:
        return recorded_profile({"bounds": profile.get("bounds", {})}).bounds
    except ProfileInvalid:
        return Bounds()


async def _variants(backend: HttpBackend, names: Sequence[str]) -> list[tuple[Variant, Json]]:
    """As `livery.commands.eval_found.in_data` has them, by the API; each with its profile as far as that is told."""
    found = []
    for asked in names or await _all(backend):
        name, at, version = asked.partition("@")
        record = await backend.show(name)
        active = record.get("version")
        if active is not None:
            found.append((Variant(name, name, "active", active, record["digest"]), record.get("profile", {})))
        if not at and active is None:
            raise CommandFailed(f"{name} has no active version; name one of its versions, as in {name}@1")
        if at:
            one = await version_there(backend, name, version)
            if one["version"] != active:
                label = f"{name}@{one['version']}"
                variant = Variant(label, name, "candidate", one["version"], one["digest"])
                found.append((variant, one.get("profile", {})))
    return found


async def _all(backend: HttpBackend) -> list[str]:
    names: list[str] = []
    after = ""
    while True:
        page = await backend.ls(after=after, limit=PAGE, state=None, source=None, search=None)
        names += [one["name"] for one in page["data"] if one.get("digest")]
        if page["next_after"] is None:
            return names
        after = page["next_after"]


async def version_there(backend: Backend, name: str, wanted: str) -> Json:
    """By number or at least 8 digits of its digest. Raises CommandFailed."""
    after: int | None = None
    while True:
        page = await backend.versions(name, after=after, limit=PAGE)
        for one in page["data"]:
            if str(one["version"]) == wanted or (len(wanted) >= 8 and one["digest"].startswith(wanted.lower())):
                row: Json = one
                return row
        after = page["next_after"]
        if after is None:
            raise CommandFailed(
                f"{name} has no version {wanted}; `livery adapters versions {name}` lists those that are kept"
            )
