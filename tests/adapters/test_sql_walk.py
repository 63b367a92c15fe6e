"""Random walks of the registry beside a model in memory: after each step both say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from adapters.sql_facts import assert_consistent, facts_of
from adapters.sql_model import Held, Name
from livery_adapters.identity import version_digest
from livery_adapters.registry import (
    AliasTarget,
    GenerationMismatch,
    NameTaken,
    NothingToRollBack,
    OwnedElsewhere,
    Registry,
    RegistryError,
    UnknownAdapter,
    UnknownAlias,
    UnknownVersion,
)

PROFILES: list[dict[str, object]] = [{}, {"temperature": 0.5}]
VERSIONS = [facts_of(label, profile=profile) for label in ("one", "two", "three") for profile in PROFILES]
names = st.sampled_from(["pirate", "corsair", "crew"])
versions = st.sampled_from(VERSIONS)
sources = st.sampled_from(["folder", "folder", "api", "hub"])
states = st.sampled_from(["ready", "registered"])
generations = st.sampled_from([None, None, None, 0, 1, 2, 3])


def view(held: Held) -> tuple[object, ...]:
    return held.number, held.facts.digest, held.state


class RegistryWalk(RuleBasedStateMachine):
    def __init__(self, new_url: Callable[[], str]) -> None:
        super().__init__()
        self.url = new_url()
        self.registry = Registry.open(self.url)
        self.names: dict[str, Name] = {}
        self.aliases: dict[str, tuple[int, tuple[AliasTarget, ...]]] = {}
        self.seen = 0
        self.before: dict[str, object] = {}

    def teardown(self) -> None:
        self.registry.close()

    def visible(self, name: str) -> Name | None:
        entry = self.names.get(name)
        return entry if entry and entry.visible else None

    def expect(self, refusal: type[RegistryError] | None, call: Callable[[], Any]) -> bool:
        """Make the call; whether it was to succeed, and did."""
        if refusal is None:
            call()
            return True
        with pytest.raises(refusal):
            call()
        return False

    def mismatch(self, entry: Name | None, expected: int | None) -> type[RegistryError] | None:
        actual = entry.seen_generation if entry else 0
        return GenerationMismatch if expected not in (None, actual) else None

    # -- changes -----------------------------------------------------------------------------------

    @rule(
        name=names,
        facts=versions,
        source=sources,
        state=states,
        activate=st.booleans(),
        expected=generations,
    )
    def put(self, name: str, facts: Any, source: str, state: Any, activate: bool, expected: int | None) -> None:
        entry = self.names.get(name)
        refusal = self.mismatch(entry, expected)
        unchanged = entry is not None and source == "folder" and entry.folder == facts.weights
        if refusal is None and not unchanged:
            if name in self.aliases:
                refusal = NameTaken
            elif entry and entry.seen_generation and (entry.source == "folder") != (source == "folder"):
                refusal = OwnedElsewhere
        follower = "here" if source == "folder" else None
        options = {"source": source, "origin": "somewhere", "state": state, "activate": activate, "follower": follower}
        if self.expect(refusal, lambda: self.registry.put(name, facts, **options, expected_generation=expected)):
            self.names.setdefault(name, Name(source)).put(facts, source, state, activate)

    @rule(name=names, facts=versions)
    def mark_ready(self, name: str, facts: Any) -> None:
        entry = self.visible(name)
        refusal = None if entry and facts.digest in entry.history else UnknownVersion if entry else UnknownAdapter
        if self.expect(refusal, lambda: self.registry.mark_ready(name, facts.digest)) and entry:
            entry.history[facts.digest].state = "ready"
            if entry.stack and entry.stack[-1] == facts.digest:
                entry.error = None

    @rule(name=names, source=sources)
    def fail(self, name: str, source: str) -> None:
        self.registry.fail(name, code="incomplete", message="half there", source=source, origin="", follower="here")
        if name in self.aliases:
            return
        entry = self.names.setdefault(name, Name(source))
        if entry.active is None:
            entry.source = source
        elif (entry.source == "folder") != (source == "folder"):
            return
        entry.error = "incomplete"

    @rule(name=names)
    def forget_failure(self, name: str) -> None:
        self.registry.forget_failure(name)
        entry = self.names.get(name)
        if entry and entry.error:
            entry.error = None
            if not entry.generation:
                del self.names[name]

    @rule(name=names, facts=versions, by_number=st.booleans(), expected=generations)
    def activate(self, name: str, facts: Any, by_number: bool, expected: int | None) -> None:
        entry = self.visible(name)
        held = entry.history.get(facts.digest) if entry else None
        refusal = UnknownAdapter if entry is None else self.mismatch(entry, expected)
        refusal = refusal or (UnknownVersion if held is None else None)
        wanted = str(held.number) if held and by_number else facts.digest[:16]
        if self.expect(refusal, lambda: self.registry.activate(name, wanted, expected)) and entry:
            entry.move(facts.digest)

    @rule(name=names, order=st.permutations(VERSIONS[::2]), source=sources)
    def serve_one_after_the_other_and_go_back_twice(self, name: str, order: list[Any], source: str) -> None:
        """The usual way, which walks of single steps rarely take."""
        for facts in order:
            self.put(name, facts, source, "ready", True, None)
        self.rollback(name)
        self.rollback(name)

    @rule(name=names)
    def rollback(self, name: str) -> None:
        entry = self.visible(name)
        stack = entry.rolled_back() if entry else None
        refusal = UnknownAdapter if entry is None else NothingToRollBack if stack is None else None
        if self.expect(refusal, lambda: self.registry.rollback(name)) and entry and stack:
            entry.stack, entry.error = stack, None
            entry.generation += 1

    @rule(name=names, expected=generations)
    def retire(self, name: str, expected: int | None) -> None:
        entry = self.visible(name)
        refusal = UnknownAdapter if entry is None else self.mismatch(entry, expected)
        if self.expect(refusal, lambda: self.registry.retire(name, expected)) and entry:
            entry.retire()

    @rule(name=names)
    def withdraw(self, name: str) -> None:
        entry = self.names.get(name)
        assert self.registry.withdraw(name, "here") == (entry.withdraw() if entry else False)

    @rule(name=names, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        entry = self.visible(name)
        if self.expect(None if entry else UnknownAdapter, lambda: self.registry.pin(name, pinned)) and entry:
            entry.pinned = pinned

    @rule(name=names, profile=st.sampled_from(PROFILES))
    def set_profile(self, name: str, profile: dict[str, object]) -> None:
        entry = self.visible(name)
        active = entry.active if entry else None
        if not self.expect(None if active else UnknownAdapter, lambda: self.registry.set_profile(name, profile)):
            return
        assert entry is not None and active is not None
        facts = next(one for one in VERSIONS if one.digest == version_digest(active.facts.weights, 0, profile))
        if facts.digest not in entry.history:
            entry.last_number += 1
            entry.history[facts.digest] = Held(entry.last_number, facts, active.state)
        elif active.state == "ready" and entry.history[facts.digest].state != "ready":
            entry._run(facts)
        entry.move(facts.digest)

    @rule(keep=st.integers(0, 3))
    def trim(self, keep: int) -> None:
        dropped = self.registry.trim(keep)
        expected = [(name, digest) for name, entry in self.names.items() for digest in entry.surplus(keep)]
        assert sorted(dropped) == sorted(expected)
        for name, digest in dropped:
            del self.names[name].history[digest]

    @rule(name=names, to=names, weight=st.sampled_from([1.0, 9.0]))
    def set_alias(self, name: str, to: str, weight: float) -> None:
        targets = (AliasTarget(to, weight),)
        served = self.visible(to)
        refusal: type[RegistryError] | None = None
        if self.visible(name):
            refusal = NameTaken
        elif served is None or not served.generation:
            refusal = RegistryError
        if self.expect(refusal, lambda: self.registry.set_alias(name, targets, "user")):
            generation, before = self.aliases.get(name, (0, ()))
            self.aliases[name] = (generation + (before != targets), targets)

    @rule(name=names)
    def delete_alias(self, name: str) -> None:
        if self.expect(None if name in self.aliases else UnknownAlias, lambda: self.registry.delete_alias(name)):
            del self.aliases[name]

    @rule()
    def open_again(self) -> None:
        self.registry.close()
        self.registry = Registry.open(self.url)

    # -- what must hold --------------------------------------------------------------------------------

    @initialize()
    def nothing_is_there(self) -> None:
        assert self.registry.count(include_retired=True) == 0

    @invariant()
    def both_say_the_same(self) -> None:
        records = {record.name: record for record in self.registry.page(include_retired=True).records}
        assert records.keys() == self.names.keys()
        for name, entry in self.names.items():
            record = records[name]
            shown = record.generation, record.state, record.source, record.pinned, record.error_code
            assert shown == (entry.generation, entry.state, entry.source, entry.pinned, entry.error)
            found = record.active and replace(record.active.facts, created=1.5)  # a profile is newer than its files
            assert found == (entry.active and entry.active.facts)
            history = self.registry.versions(name) if entry.visible else ()
            held = [(version.number, version.facts.digest, version.state) for version in history]
            assert held == sorted(map(view, entry.history.values()), reverse=True)
        kept = {held.facts.weights for entry in self.names.values() for held in entry.history.values()}
        assert self.registry.weights_in_use() == kept
        assert {alias.name: (alias.generation, alias.targets) for alias in self.registry.aliases()} == self.aliases
        assert not {name for name in self.aliases if self.visible(name)}

    @invariant()
    def whatever_changed_was_logged(self) -> None:
        now: dict[str, object] = {f"{alias.name} as alias": alias for alias in self.registry.aliases()}
        for record in self.registry.page(include_retired=True).records:
            now[record.name] = (record, self.registry.versions(record.name) if record.state != "retired" else ())
        changed = {name for name in now.keys() | self.before.keys() if now.get(name) != self.before.get(name)}
        self.seen, logged = self.registry.changes(self.seen)
        assert logged is not None
        assert {name.removesuffix(" as alias") for name in changed} <= set(logged)
        self.before = now

    @invariant()
    def nothing_is_half_done(self) -> None:
        assert_consistent(self.registry)


def test_walks(new_url: Callable[[], str]) -> None:
    limits = settings(max_examples=40, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(lambda: RegistryWalk(new_url), settings=limits)
