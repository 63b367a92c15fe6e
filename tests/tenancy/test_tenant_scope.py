"""What names mean to whom: pure functions, beside a plain model of three tenants' names."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from livery.tenancy import EVERYTHING, Limits, Principal, Role, RoleNotAllowed, scope
from livery_adapters.names import OPERATOR_TENANT
from livery_adapters.registry import NO_QUOTA, Quota, Reader, View

TENANTS = ("acme", "bob", OPERATOR_TENANT)
SEGMENTS = ("acme", "bob", "zoe", "x", "own", "default")
tenants = st.sampled_from(TENANTS)
roles: st.SearchStrategy[Role] = st.sampled_from(["user", "owner"])
names = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=3).map("/".join)
patterns = st.one_of(names, names.map(lambda name: f"{name[:2]}*"), st.just("*"))
allowed = st.lists(st.one_of(st.sampled_from(EVERYTHING), patterns), max_size=3).map(tuple)
principals = st.builds(Principal, tenant=tenants, role=roles, allow=allowed)
# Who owns what: full names, each its owner's, and whom they are shared with.
worlds = st.sets(names, max_size=8)
grants = st.sets(st.tuples(names, tenants), max_size=6)


def owner(full: str) -> str:
    return scope.owner_of(full, TENANTS.__contains__)


def readable(full: str, reader: Reader | None, shares: set[tuple[str, str]]) -> bool:
    """What the registry says: shares are of tenants' adapters, with others."""
    if reader is None:
        return True
    if reader.how == "owner":
        return owner(full) == reader.tenant
    parties = (owner(full), reader.tenant)
    return (full, reader.tenant) in shares and parties[0] != parties[1] and OPERATOR_TENANT not in parties


def meant(principal: Principal, name: str, world: set[str], shares: set[tuple[str, str]]) -> str | None:
    """What a request for a name gets."""
    for full, reader in scope.candidates(principal, name):
        if full in world and readable(full, reader, shares):
            return full if scope.allows(principal, scope.kind_of(principal, owner(full)), name) else None
    return None


def test_the_operators_tenant_has_one_name() -> None:
    assert Principal().tenant == OPERATOR_TENANT


@given(principals, names, worlds, grants)
def test_nobody_gets_what_is_anothers(
    principal: Principal, name: str, world: set[str], shares: set[tuple[str, str]]
) -> None:
    found = meant(principal, name, world, shares)
    if found is not None:
        assert owner(found) in (principal.tenant, OPERATOR_TENANT) or (found, principal.tenant) in shares
        assert scope.shown(principal, found) == name


@given(principals, worlds, grants)
def test_what_a_list_shows_is_what_a_request_gets(
    principal: Principal, world: set[str], shares: set[tuple[str, str]]
) -> None:
    """Each thing that a caller may use is called one name, which leads to it unless a name of its own hides it."""
    for full in world:
        mine = owner(full) == principal.tenant
        usable = mine or owner(full) == OPERATOR_TENANT or readable(full, Reader("shared", principal.tenant), shares)
        shown = scope.shown(principal, full)
        hidden = not mine and scope.in_full(principal, shown) in world
        allows = scope.allows(principal, scope.kind_of(principal, owner(full)), shown)
        expected = full if usable and allows and not hidden else None
        assert (meant(principal, shown, world, shares) == full) == (expected == full)


@given(principals, names, names)
def test_what_is_looked_for_depends_on_the_caller_and_never_on_the_name(
    principal: Principal, one: str, other: str
) -> None:
    readers = [[reader for _, reader in scope.candidates(principal, name)] for name in (one, other)]
    assert readers[0] == readers[1]
    assert [reader for _, reader in scope.within(principal.tenant, one)] == readers[0]


@given(principals, names)
def test_a_name_of_ones_own_goes_to_its_full_form_and_back(principal: Principal, name: str) -> None:
    full = scope.in_full(principal, name)
    assert scope.shown(principal, full) == name
    assume(principal.tenant != OPERATOR_TENANT)
    assert owner(full) == principal.tenant
    assert scope.candidates(principal, name)[0] == (full, Reader("owner", principal.tenant))


@given(st.builds(Principal, tenant=tenants, allow=allowed), names, worlds)
def test_an_admin_uses_names_in_full_and_any_of_them(principal: Principal, name: str, world: set[str]) -> None:
    assert principal.role == "admin"
    assert scope.candidates(principal, name) == (scope.Candidate(name, None),)
    assert scope.shown(principal, name) == scope.in_full(principal, name) == name
    assert scope.view(principal) is None
    assert scope.quota(principal) == NO_QUOTA


@given(st.sampled_from(["own", "shared", "public", "base"]), names, principals)
def test_a_key_is_let_by_a_word_or_by_a_name(kind: scope.Kind, name: str, principal: Principal) -> None:
    words = {kind} | ({"public"} if kind == "own" and principal.tenant == OPERATOR_TENANT else set())
    by_name = any(
        pattern == name or (pattern.endswith("*") and name.startswith(pattern[:-1]))
        for pattern in principal.allow
        if pattern not in EVERYTHING
    )
    assert scope.allows(principal, kind, name) == (bool(words & set(principal.allow)) or by_name)


def test_what_something_is_to_a_caller_depends_on_whose_it_is() -> None:
    kinds = {
        tenant: [scope.kind_of(Principal(tenant, "user"), owner) for owner in ("acme", "bob", OPERATOR_TENANT)]
        for tenant in ("acme", OPERATOR_TENANT)
    }
    assert kinds == {"acme": ["own", "shared", "public"], OPERATOR_TENANT: ["shared", "shared", "own"]}


def test_words_of_an_allow_list_are_no_names() -> None:
    assert not scope.allows(Principal("acme", "user", allow=("own",)), "public", "own")
    assert scope.allows(Principal("acme", "user", allow=("pi*",)), "public", "pirate")
    assert not scope.allows(Principal("acme", "user", allow=("pirate",)), "public", "pirates")
    assert not scope.allows(Principal("acme", "user", allow=("Pi*",)), "public", "pirate")
    assert not scope.allows(Principal("acme", "user", allow=()), "own", "pirate")


def test_a_view_says_what_the_key_may_ask() -> None:
    principal = Principal("acme", "owner", allow=("own", "base", "pi*", "bob/x"))
    assert scope.view(principal) == View("acme", True, False, False, ("pi*", "bob/x"))


def test_a_quota_is_the_tenants() -> None:
    kept = Limits(adapters=1, versions=2, adapter_bytes=3, n=4)
    principal = Principal("acme", "owner", limits=Limits(adapters=9), tenant_limits=kept)
    assert scope.quota(principal) == Quota(adapters=1, versions=2, nbytes=3)


def test_roles_open_what_the_doors_say() -> None:
    scope.check_role(Principal("acme", "owner"), "manage")
    scope.check_role(Principal(), "operate")
    for role, purpose in (("user", "manage"), ("user", "operate"), ("owner", "operate")):
        with pytest.raises(RoleNotAllowed, match=f"role {role}"):
            scope.check_role(Principal("acme", role), purpose)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        *(("acme/x", "acme"), ("acme/x/y", "acme"), ("acme", OPERATOR_TENANT), ("acme/", OPERATOR_TENANT)),
        *(
            ("zoe/x", OPERATOR_TENANT),
            ("default/x", OPERATOR_TENANT),
            ("/acme/x", OPERATOR_TENANT),
            ("", OPERATOR_TENANT),
        ),
    ],
)
def test_names_belong_to_the_tenant_they_begin_with(full: str, expected: str) -> None:
    assert owner(full) == expected
