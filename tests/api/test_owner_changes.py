"""Whose a name is is settled when it is written, and looked at whenever a verb is called, over a live server."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.live_server import LiveServer, Serve, Setup
from api.peft_files import make_adapter
from api.tenants import People, call, upload
from livery.management import AddOptions
from livery_adapters.incoming import Incoming
from livery_adapters.library import Fill, from_directory
from livery_adapters.registry import OwnerChanged


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "one", seed=1)


@pytest.fixture
def live(serve: Serve, tmp_path: Path) -> LiveServer:
    return serve(Setup(api_key="sk-operator"), folder=tmp_path)


def slow(server: LiveServer, folder: Path, tenant: str, *, deleted: bool = False) -> Fill:
    """An upload during which a tenant is made, or deleted, by another process."""
    fill = from_directory(folder, [folder.parent])

    async def meanwhile(incoming: Incoming) -> str:
        if deleted:
            server.tenants.delete_tenant(tenant, occupied=lambda _: None)
        else:
            server.tenants.create_tenant(tenant, occupied=lambda _: None)
        return await fill(incoming)

    return meanwhile


def test_an_upload_of_the_operators_never_becomes_public_below_a_tenant_made_meanwhile(
    live: LiveServer, saved: Path
) -> None:
    with pytest.raises(OwnerChanged, match="'acme/late'"):
        live.call(live.management.take("acme/late", slow(live, saved, "acme"), "upload", AddOptions()))
    who = People(live, {"acme": live.make_key("acme", role="owner"), "bob": live.make_key("bob")})
    for key in ("acme", "bob"):
        assert call(who, key, "GET", "/v1/models").text.count("late") == 0
    assert upload(who, "acme", "late", saved).status_code == 200
    assert live.management.library.registry.get("acme/late").owner == "acme"


def test_an_upload_of_a_deleted_tenants_is_nobodys(live: LiveServer, saved: Path) -> None:
    live.make_key("acme", role="owner")
    fill = slow(live, saved, "acme", deleted=True)
    with pytest.raises(OwnerChanged):
        live.call(live.management.take("acme/late", fill, "upload", AddOptions(owner="acme")))
    assert live.management.library.registry.find("acme/late") is None


def test_what_is_the_operators_below_a_tenants_name_is_not_the_tenants_to_change(live: LiveServer, saved: Path) -> None:
    """As such a name may be there since before tenants had names of their own."""
    live.call(live.management.take("acme/old", from_directory(saved, [saved.parent]), "upload", AddOptions()))
    live.call(live.management.set_alias("acme/way", [("acme/old", 1.0)], "none"))
    who = People(live, {"acme": live.make_key("acme", role="owner"), "operator": "sk-operator"})
    before = call(who, "operator", "GET", "/v1/adapters/acme/old").json()
    for method, path, sent in (
        ("GET", "adapters/old/versions", None),
        ("GET", "adapters/old/profile", None),
        ("PUT", "adapters/old/profile", {"profile": {"temperature": 0.5}}),
        ("POST", "adapters/old/activate", {"version": 1}),
        ("POST", "adapters/old/rollback", None),
        ("POST", "adapters/old/prefetch", None),
        ("POST", "adapters/old/share", {"tenant": "zoe"}),
        ("POST", "adapters/old/unshare", {"tenant": "zoe"}),
        ("DELETE", "adapters/old", None),
        ("DELETE", "models/old", None),
        ("GET", "aliases/way", None),
        ("DELETE", "aliases/way", None),
    ):
        answer = call(who, "acme", method, f"/v1/{path}", json=sent)
        assert (answer.status_code, "no a" in answer.text or "not exist" in answer.text) == (404, True), (
            path,
            answer.text,
        )
    assert upload(who, "acme", "old", saved).status_code == 409
    assert call(who, "acme", "PUT", "/v1/aliases/way", json={"targets": [{"adapter": "base-model"}]}).status_code == 409
    assert call(who, "operator", "GET", "/v1/adapters/acme/old").json() == before
