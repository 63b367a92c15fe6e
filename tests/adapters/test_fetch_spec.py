"""Sources are parsed into one form and compared segment by segment with what the operator allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from livery_adapters.fetching import (
    DirectorySource,
    HubSource,
    ObjectSource,
    SourceNotAllowed,
    SourcePolicy,
    parse_source,
)
from livery_adapters.refusal import AdapterRefused

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "source", "normal"),
    [
        ("/srv/adapters/pirate/", DirectorySource(Path("/srv/adapters/pirate")), "/srv/adapters/pirate"),
        ("file:///srv/my pirate", DirectorySource(Path("/srv/my pirate")), "/srv/my pirate"),
        ("/srv/100%/a@b?c", DirectorySource(Path("/srv/100%/a@b?c")), "/srv/100%/a@b?c"),
        ("hf://org/name", HubSource("org/name"), "hf://org/name"),
        ("HF://org/name/", HubSource("org/name"), "hf://org/name"),
        (f"hf://org/name@{SHA}", HubSource("org/name", SHA), f"hf://org/name@{SHA}"),
        ("hf://org/name@v1.0/a/b", HubSource("org/name", "v1.0", "a/b"), "hf://org/name@v1.0/a/b"),
        ("hf://org/name/a", HubSource("org/name", None, "a"), "hf://org/name/a"),
        ("hf://org/name@refs/pr/3/a", HubSource("org/name", "refs/pr/3", "a"), "hf://org/name@refs/pr/3/a"),
        ("s3://bucket", ObjectSource("s3", "bucket", ""), "s3://bucket"),
        ("s3://bucket/team/pirate v2/", ObjectSource("s3", "bucket", "team/pirate v2"), "s3://bucket/team/pirate v2"),
        ("gs://bucket_1/x", ObjectSource("gs", "bucket_1", "x"), "gs://bucket_1/x"),
        ("az://container/x", ObjectSource("az", "container", "x"), "az://container/x"),
    ],
)
def test_each_form_is_read_and_written(text: str, source: object, normal: str) -> None:
    assert parse_source(text) == source
    assert str(source) == normal
    assert parse_source(normal) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pirate",
        "./pirate",
        "~/pirate",
        "../pirate",
        "/srv/../etc",
        "/srv/./x",
        "/srv//x",
        "//host/share",
        "/srv/a\nb",
        "/srv/a\x00b",
        "/srv/\udcff",
        "/" + "a" * 1024,
        "file://host/srv",
        "file://srv",
        "file:///srv/%2e%2e/etc",
        "file:///srv/..",
        "file:///srv/x?y",
        "hf://",
        "hf://org",
        "hf://org/",
        "hf://org/name/../../other/name",
        "hf://org/name//a",
        "hf://org/..",
        "hf://../name",
        "hf://org/name@",
        "hf://org/name@..",
        "hf://org/name@a..b",
        "hf://org/name@refs",
        "hf://org/name@refs/../x",
        "hf://org@main/name",
        "hf://user:secret@hub/org/name",
        "hf://org/name?token=secret",
        "hf://org/na me",
        "hf://org/name%2f..",
        "s3://",
        "s3:///prefix",
        "s3://bucket/../other",
        "s3://bucket/a//b",
        "s3://bucket/./a",
        "s3://bucket/a\\b",
        "s3://bucket/a%2e%2e",
        "s3://bucket/a?X-Amz-Signature=secret",
        "s3://bucket/a#b",
        "s3://key:secret@bucket/a",
        "s3://host:9000/a",
        "az://a b/x",
        "http://example.org/x",
        "https://user:secret@example.org/x",
        "ftp://example.org/x",
        "git+ssh://example.org/x",
    ],
)
def test_anything_else_is_refused_without_repeating_secrets(text: str) -> None:
    with pytest.raises(AdapterRefused) as caught:
        parse_source(text)
    assert caught.value.code == "bad_source"
    assert "secret" not in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("allowed", "text", "fits"),
    [
        ([], "hf://org/name", False),
        (["hf://"], "hf://org/name", True),
        (["hf://"], "s3://org/name", False),
        (["hf://org/"], "hf://org/name@main/a", True),
        (["hf://org"], "hf://org2/name", False),
        (["hf://org/name"], "hf://org/name2", False),
        (["hf://org/name/a"], "hf://org/name/a/b", True),
        (["hf://org/name/a"], "hf://org/name", False),
        ([f"hf://org/name@{SHA}"], f"hf://org/name@{SHA}/a", True),
        ([f"hf://org/name@{SHA}"], "hf://org/name", False),
        ([f"hf://org/name@{SHA}"], "hf://org/name@main", False),
        (["s3://bucket/team"], "s3://bucket/team/x", True),
        (["s3://bucket/team/"], "s3://bucket/team", True),
        (["s3://bucket/team"], "s3://bucket/team2", False),
        (["s3://bucket"], "s3://bucket2/x", False),
        (["gs://bucket"], "s3://bucket/x", False),
        (["/srv/a", "az://box"], "az://box/x", True),
        (["/srv/adapters"], "/srv/adapters/pirate", True),
        (["file:///srv/adapters/"], "/srv/adapters", True),
        (["/srv/adapters"], "/srv/adapters2/pirate", False),
        (["/srv/adapters"], "/etc", False),
        (["/"], "/etc", True),
    ],
)
def test_a_prefix_allows_what_is_below_it(allowed: list[str], text: str, fits: bool) -> None:
    policy = SourcePolicy(allowed)
    source = parse_source(text)
    if fits:
        assert str(policy.check(source)) == str(source)
        return
    with pytest.raises(SourceNotAllowed) as caught:
        policy.check(source)
    assert caught.value.code == "source_not_allowed"
    assert f"--allow-source {text}" in caught.value.message


PLACES = ["hf://ours/", "s3://bucket/{tenant}/", "gs://box-{tenant}", "hf://{tenant}/shown"]


@pytest.mark.parametrize(
    ("tenant", "text", "fits"),
    [
        ("acme", "s3://bucket/acme/x", True),
        ("acme", "gs://box-acme/x", True),
        ("acme", "hf://acme/shown", True),
        ("acme", "s3://bucket/zeta/x", False),
        ("acme", "s3://bucket/acme2/x", False),
        ("acme", "s3://bucket/{tenant}/x", False),
        ("acme", "gs://box-zeta/x", False),
        ("acme", "hf://acme/hidden", False),
        ("acme", "hf://ours/x", False),
        ("acme", "s3://bucket/x", False),
        ("default", "hf://ours/x", True),
        ("default", "s3://bucket/default/x", True),
        ("default", "s3://bucket/acme/x", False),
    ],
)
def test_a_tenant_may_name_what_is_below_its_own_places(tenant: str, text: str, fits: bool) -> None:
    policy, source = SourcePolicy(PLACES), parse_source(text)
    if fits:
        assert policy.check(source, tenant) == source
        return
    with pytest.raises(SourceNotAllowed) as caught:
        policy.check(source, tenant)
    assert ("{tenant}" in caught.value.message.replace(text, "")) == (tenant != "default")
    assert "ours" not in caught.value.message.replace(text, ""), "what others may name isn't told"


def test_a_directory_is_allowed_under_either_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "real" / "pirate").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for allowed, named in (("real", "link"), ("link", "real")):
        policy = SourcePolicy([str(tmp_path / allowed)])
        source = policy.check(parse_source(str(tmp_path / named / "pirate")))
        assert source == DirectorySource(tmp_path / named / "pirate", (tmp_path / allowed,))


@pytest.mark.parametrize("text", ["adapters", "{tenant}", "s3://{tenants}/x", "s3://a/../b", "https://example.org", ""])
def test_a_prefix_that_means_nothing_is_said_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="--allow-source"):
        SourcePolicy([text])
