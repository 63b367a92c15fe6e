"""Random walks of the registry beside a model that only counts: no order of calls frees what is still used."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapters.versions import version
from livery_adapters.registry import AdapterRegistry, AdapterVersion, Lease, UnknownAdapter

VERSIONS = [version(str(number)) for number in range(3)]
names = st.sampled_from(["pirate", "corsair"])
versions = st.sampled_from(VERSIONS)


@dataclass
class Expected:
    """What the model knows about one name."""

    active: str | None = None
    staged: str | None = None
    failed: bool = False


class RegistryWalk(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.registry = AdapterRegistry(on_idle=self._idle)
        self.names: dict[str, Expected] = {}
        self.leases: list[Lease] = []
        self.before: Counter[str] = Counter()

    def _idle(self, version: AdapterVersion) -> None:
        assert self.registry.uses(version.digest) == 0
        self.told.append(version.digest)

    def _uses(self) -> Counter[str]:
        held = [entry.active for entry in self.names.values()] + [entry.staged for entry in self.names.values()]
        return Counter([*filter(None, held), *(lease.version.digest for lease in self.leases)])

    def _leases_of(self, name: str) -> int:
        return sum(lease.name == name for lease in self.leases)

    @rule(name=names, version=versions)
    def add(self, name: str, version: AdapterVersion) -> None:
        self.registry.add(name, version, "walk")
        self.names.setdefault(name, Expected()).staged = version.digest

    @rule(name=names, version=versions)
    def activate(self, name: str, version: AdapterVersion) -> None:
        entry = self.names.get(name, Expected())
        if entry.staged != version.digest:
            with pytest.raises(UnknownAdapter):
                self.registry.activate(name, version.digest)
            return
        self.registry.activate(name, version.digest)
        entry.active, entry.staged, entry.failed = version.digest, None, False

    @rule(name=names, version=versions)
    def serve(self, name: str, version: AdapterVersion) -> None:
        """The usual way, which walks of single steps rarely take."""
        self.registry.add(name, version, "walk")
        self.registry.activate(name, version.digest)
        self.names[name] = Expected(active=version.digest)

    @rule(name=names, version=versions)
    def withdraw(self, name: str, version: AdapterVersion) -> None:
        self.registry.withdraw(name, version.digest)
        entry = self.names.get(name, Expected())
        if entry.staged == version.digest:
            entry.staged = None

    @rule(name=names)
    def fail(self, name: str) -> None:
        self.registry.fail(name, "no good", "walk")
        self.names.setdefault(name, Expected()).failed = True

    @rule(name=names)
    def retire(self, name: str) -> None:
        assert self.registry.retire(name) == (name in self.names)
        if name in self.names:
            self.names[name] = Expected()

    @rule(name=names, pinned=st.none() | versions)
    def lease(self, name: str, pinned: AdapterVersion | None) -> None:
        active = self.names.get(name, Expected()).active
        usable = {lease.version.digest for lease in self.leases if lease.name == name} | {active}
        wanted = pinned.digest if pinned else active
        asked = f"{name}@{pinned.digest[:8]}" if pinned else name
        if active is None or wanted not in usable:
            with pytest.raises(UnknownAdapter):
                self.registry.lease(asked)
            return
        lease = self.registry.lease(asked)
        assert (lease.name, lease.version.digest) == (name, wanted)
        self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def replace_and_pin_what_is_leased(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.leases))
        self.serve(held.name, data.draw(versions))
        self.lease(held.name, held.version)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()
        lease.release()

    @invariant()
    def idle_is_told_once_when_the_last_use_ends(self) -> None:
        now = self._uses()
        ended = sorted(digest for digest in self.before if not now[digest])
        assert sorted(self.told) == ended
        self.told.clear()
        self.before = Counter({digest: count for digest, count in now.items() if count})

    @invariant()
    def uses_are_names_and_leases(self) -> None:
        now = self._uses()
        assert {version.digest: self.registry.uses(version.digest) for version in VERSIONS} == {
            version.digest: now[version.digest] for version in VERSIONS
        }

    @invariant()
    def names_are_known_while_anything_holds_them(self) -> None:
        for name in [name for name in self.names if self._is_empty(name)]:
            del self.names[name]
        records = {record.name: record for record in self.registry.records()}
        assert records.keys() == self.names.keys()
        for name, record in records.items():
            assert record.leases == self._leases_of(name)
            assert (record.version.digest if record.version else None) == self.names[name].active
            assert (record.error is not None) == self.names[name].failed

    @invariant()
    def states_say_what_is_served(self) -> None:
        for record in self.registry.records():
            entry = self.names[record.name]
            if entry.active or entry.staged:
                assert record.state == ("active" if entry.active else "loading")
            elif not self._leases_of(record.name):
                assert record.state == "failed"
            else:
                assert record.state == "draining"

    def _is_empty(self, name: str) -> bool:
        entry = self.names[name]
        return not (entry.active or entry.staged or entry.failed or self._leases_of(name))

    def teardown(self) -> None:
        """Whatever the walk did, letting go of everything leaves nothing."""
        for lease in self.leases:
            lease.release()
        for name in list(self.names):
            self.registry.retire(name)
        assert self.registry.records() == []
        assert sorted(self.told) == sorted(self.before)


RegistryWalk.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRegistryWalk = RegistryWalk.TestCase
