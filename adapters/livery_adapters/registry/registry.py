"""Which adapters exist: names, their immutable versions, aliases. In SQL, shared by any number of processes.

    registry = Registry.open(data / "livery.db", reserved={"smollm2-135m-instruct"})
    record = registry.put("pirate", facts, source="api", origin="hf://me/pirate@4f2c")
    registry.put("pirate", better, source="api", origin="...", expected_generation=record.generation)
    registry.rollback("pirate")
    seen, names = registry.changes(seen)     # what other processes changed meanwhile
    registry.close()

Every method is one transaction: what it returned is on disk, what it raised left nothing. Methods block; any
thread may call them. Bytes, engines and HTTP are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from livery_adapters.names import OPERATOR_TENANT, validate_name
from livery_adapters.registry import changes, folders, keeping, naming, reading, viewing, writing
from livery_adapters.registry.aliases import AliasVerbs
from livery_adapters.registry.briefs import Brief, briefs
from livery_adapters.registry.database import Database
from livery_adapters.registry.errors import OwnerChanged
from livery_adapters.registry.identities import IdentityVerbs
from livery_adapters.registry.migrations import migrate
from livery_adapters.registry.records import (
    NO_QUOTA,
    AdapterRecord,
    Card,
    Given,
    NamedVersion,
    Page,
    Quota,
    Reader,
    VersionFacts,
    VersionState,
    View,
    reader_of,
)
from livery_adapters.registry.rows import printable
from livery_adapters.registry.schema import adapters
from livery_adapters.registry.tenants import TenantVerbs


class Registry(TenantVerbs, AliasVerbs, IdentityVerbs):
    """The only writer of names, versions, aliases and states.

    Every method may raise RegistryUnavailable (the database can't be used now) or RegistryUnreadable (damaged).
    `expected_generation` makes a change a compare-and-set, with GenerationMismatch for the loser; 0 expects that
    the name doesn't exist. Where an `owner` changes or looks at a name, it is unknown unless it is that tenant's (None:
    whosever it is).
    """

    @classmethod
    def open(
        cls,
        url: str | Path,
        reserved: Collection[str] = frozenset(),
        owner_of: Callable[[str], str] | None = None,
    ) -> Registry:
        """A SQLite file, made when it isn't there, or `postgresql://user@host/name`. An older schema is migrated.

        `reserved` are names that nothing may have: the base model's. `owner_of` says whose a name is at this moment and
        blocks; it is asked whenever a name is settled, while nobody else writes, and may ask other databases. Raises
        RegistryTooNew, RegistryUnreadable, RegistryUnavailable, RegistryError.
        """
        database = Database(url)
        try:
            with database.write() as connection:
                migrate(connection, database.where)
        except BaseException:
            database.close()
            raise
        return cls(database, reserved, owner_of)

    def close(self) -> None:
        self.database.close()

    # -- versions of a name ----------------------------------------------------------------------------

    def put(
        self,
        name: str,
        facts: VersionFacts,
        *,
        source: str,
        origin: str,
        state: VersionState = "ready",
        pinned: bool | None = None,
        expected_generation: int | None = None,
        activate: bool = True,
        keep: int = 0,
        keep_here: int = 0,
        owner: str = OPERATOR_TENANT,
        quota: Quota = NO_QUOTA,
        inherits: VersionFacts | None = None,
        follower: str | None = None,
    ) -> AdapterRecord:
        """Add a version to the name's history unless it is there, and make it active unless `activate` is False.

        One that was never run doesn't take the place of one that was: it waits in the history to be activated.
        `keep` trims the history of this name as `trim` does; 0 keeps all of it. `keep_here` is asked for by whoever
        brings the version, and trims a pinned name's too. `inherits` is the version that was active when this one took
        its profile from there. A new name belongs to `owner`: a
        tenant whose names begin with OWNER/, or the operator. `quota` is looked at last, with what was trimmed gone.

        A version that is active already changes nothing but what is known of where it came from; errors before are
        past. When the folder gives the files it gave last time, the record stays as it stands, also when it was
        retired or rolled back since. The same files checked against another base model bring new facts. `follower`: of
        whose folder, who has what it gave from then on.

        Raises AdapterRefused (invalid_name), NameTaken, GenerationMismatch, ProfileChanged (since `inherits`),
        QuotaExceeded, OwnerChanged, and OwnedElsewhere: the folder and others never share a name before it is retired.
        """
        validate_name(name, self.reserved, owner)
        arrival = writing.Arrival(source, origin, state, pinned, activate, owner, follower)
        with self.database.write() as connection, keeping.within(connection, owner, quota):
            self._check_owner(name, owner)
            if inherits is not None:
                writing.check_profile(connection, name, inherits.profile)
            record = writing.put(connection, name, facts, arrival, expected_generation)
            if keep:
                writing.trim(connection, keep, name)
            if keep_here:
                writing.trim(connection, keep_here, name, pinned_too=True)
            return record

    def check_put(
        self,
        name: str,
        source: str,
        expected_generation: int | None = None,
        *,
        owner: str = OPERATOR_TENANT,
        quota: Quota = NO_QUOTA,
    ) -> None:
        """Whether `put` would refuse whatever comes, as things stand now; changes nothing. Raises as `put` does."""
        validate_name(name, self.reserved, owner)
        with self.database.read() as connection:
            writing.check_put(connection, name, source, expected_generation, owner)
            keeping.check_room(connection, name, owner, quota)

    def mark_ready(self, name: str, digest: str) -> AdapterRecord:
        """A registered version has been run. Raises UnknownAdapter, UnknownVersion."""
        with self.database.write() as connection:
            return writing.mark_ready(connection, printable(name), digest)

    def fail(
        self,
        name: str,
        *,
        code: str,
        message: str,
        source: str,
        origin: str,
        owner: str = OPERATOR_TENANT,
        follower: str | None = None,
    ) -> None:
        """Record why a version was not taken. An active one goes on serving, and a name without any is `failed`.

        Nothing is recorded for a name that is an alias, or another owner's, also by its active version; nor for one
        that another follower's folder has.
        """
        with self.database.write() as connection, suppress(OwnerChanged):
            if source:  # else it is about a version that is there
                self._check_owner(name, owner)
            writing.fail(connection, printable(name), code, message, source, origin, owner, follower)

    def forget_failure(self, name: str) -> None:
        """The error is past; a name that never had a version is gone. Does nothing where there is none."""
        with self.database.write() as connection:
            writing.forget_failure(connection, printable(name))

    def activate(
        self, name: str, version: str, expected_generation: int | None = None, *, owner: str | None = None
    ) -> AdapterRecord:
        """Serve a version of the history, by number or at least 8 digits of its digest.

        Raises UnknownAdapter, UnknownVersion, GenerationMismatch.
        """
        with self.database.write() as connection:
            return writing.activate(connection, printable(name), version, expected_generation, owner)

    def rollback(
        self,
        name: str,
        expected_generation: int | None = None,
        base_digest: str | None = None,
        *,
        owner: str | None = None,
    ) -> AdapterRecord:
        """Serve what was active before, and once more goes back further.

        Passed over: versions no longer kept, and with `base_digest` those taken in for another base model. Raises
        UnknownAdapter, NothingToRollBack, GenerationMismatch.
        """
        with self.database.write() as connection:
            return writing.rollback(connection, printable(name), expected_generation, base_digest, owner)

    def rollback_target(self, name: str, base_digest: str | None = None, *, owner: str | None = None) -> NamedVersion:
        """What `rollback` would serve now. Raises UnknownAdapter, NothingToRollBack."""
        with self.database.read() as connection:
            return writing.rollback_target(connection, printable(name), base_digest, owner)

    def retire(self, name: str, expected_generation: int | None = None, *, owner: str | None = None) -> AdapterRecord:
        """Take the name out of service and drop its history. What the folder gave last stays known.

        Raises UnknownAdapter, GenerationMismatch.
        """
        with self.database.write() as connection:
            return writing.retire(connection, printable(name), expected_generation, owner)

    def withdraw(self, name: str, follower: str) -> bool:
        """The folder of `follower` no longer has this name: it is retired if it came from there, and True returned.

        Unlike after `retire`, the same files count as new when they come back, also where the name was retired before.
        """
        with self.database.write() as connection:
            return folders.withdraw(connection, printable(name), follower)

    def claim(self, names: Iterable[str], follower: str) -> None:
        """Those of the names that a folder gave before followers were told apart are this one's."""
        with self.database.write() as connection:
            folders.claim(connection, map(printable, names), follower)

    def pin(self, name: str, pinned: bool) -> AdapterRecord:
        """Pinned adapters are loaded at start and keep their history. Raises UnknownAdapter."""
        with self.database.write() as connection:
            return writing.pin(connection, printable(name), pinned)

    def set_profile(
        self,
        name: str,
        profile: Mapping[str, object],
        expected_generation: int | None = None,
        quota: Quota = NO_QUOTA,
        *,
        owner: str | None = None,
    ) -> AdapterRecord:
        """Serve the active version's weights with another profile: a new version, or one there was.

        Raises UnknownAdapter, GenerationMismatch, QuotaExceeded.
        """
        with self.database.write() as connection:
            record = reading.get(connection, printable(name), reader=reader_of(owner))
            with keeping.within(connection, record.owner, quota):
                return writing.set_profile(connection, printable(name), profile, expected_generation)

    def trim(self, keep: int) -> list[tuple[str, str]]:
        """Drop inactive versions beyond the newest `keep` of each name that isn't pinned: (name, digest) of each."""
        with self.database.write() as connection:
            return writing.trim(connection, keep)

    # -- looking ---------------------------------------------------------------------------------------

    def get(self, name: str, *, include_retired: bool = False, reader: Reader | None = None) -> AdapterRecord:
        """How `name` stands, as far as `reader` may know (None: everything). Raises UnknownAdapter."""
        with self.database.read() as connection:
            return reading.get(connection, printable(name), include_retired=include_retired, reader=reader)

    def find(self, name: str, *, include_retired: bool = False, reader: Reader | None = None) -> AdapterRecord | None:
        """How `name` stands, None when there is no such adapter that `reader` may use (None: any)."""
        with self.database.read() as connection:
            return reading.find(connection, printable(name), include_retired=include_retired, reader=reader)

    def page(
        self,
        after: str = "",
        limit: int = 100,
        state: str | None = None,
        source: str | None = None,
        search: str | None = None,
        *,
        include_retired: bool = False,
        owner: str | None = None,
        view: View | None = None,
    ) -> Page:
        """The `limit` (1 to 1000) records whose names follow `after`, in a few queries. `search` is part of a name.

        `owner`: only what belongs to this tenant. With a `view`, names are looked for, sorted and continued from
        (`after`, `next_after`) as that tenant knows them; the records have them in full all the same.
        """
        conditions = reading.matching(state, source, owner, include_retired)
        with self.database.read() as connection:
            if view is not None:
                return viewing.page(connection, view, printable(after), limit, conditions, search)
            conditions += reading.named_like(adapters.c.name, search)
            return reading.page(connection, printable(after), limit, conditions)

    def count(
        self,
        state: str | None = None,
        source: str | None = None,
        search: str | None = None,
        *,
        include_retired: bool = False,
        owner: str | None = None,
        view: View | None = None,
    ) -> int:
        """How many records all pages hold together."""
        conditions = reading.matching(state, source, owner, include_retired)
        with self.database.read() as connection:
            if view is not None:
                return viewing.count(connection, view, conditions, search)
            return reading.count(connection, [*conditions, *reading.named_like(adapters.c.name, search)])

    def cards(self, view: View | None = None) -> list[Card]:
        """Every name that takes requests and that a view shows, aliases too, by name in full."""
        with self.database.read() as connection:
            named = naming.every(connection) if view is None else viewing.every_alias(connection, view)
            others = [Card(alias.name, "", alias.updated, alias.owner) for alias in named]
            served = reading.cards(connection, []) if view is None else viewing.cards(connection, view)
            return sorted([*served, *others], key=lambda card: card.name)

    def briefs(self, names: Iterable[str] | None = None) -> list[Brief]:
        """All adapters in few words, or those of `names` that are there; retired ones aren't."""
        with self.database.read() as connection:
            return briefs(connection, names)

    def pinned(self) -> tuple[AdapterRecord, ...]:
        """Pinned adapters with an active version, by name."""
        with self.database.read() as connection:
            return reading.pinned(connection)

    def given(self, follower: str) -> dict[str, Given]:
        """What the folder of `follower`, or nobody's, gave last under each name that wasn't withdrawn or given anew."""
        with self.database.read() as connection:
            return folders.given(connection, follower)

    def versions(
        self, name: str, *, owner: str | None = None, after: int | None = None, limit: int | None = None
    ) -> tuple[NamedVersion, ...]:
        """The history of a name, newest first: what is older than number `after`, at most `limit` versions.

        Raises UnknownAdapter.
        """
        with self.database.read() as connection:
            if owner is not None:
                reading.get(connection, printable(name), reader=reader_of(owner))
            return reading.history(connection, printable(name), after, limit)

    def version(self, name: str, wanted: str, *, owner: str | None = None) -> NamedVersion:
        """One version by number or at least 8 digits of its digest. Raises UnknownAdapter, UnknownVersion."""
        with self.database.read() as connection:
            if owner is not None:
                reading.get(connection, printable(name), reader=reader_of(owner))
            return reading.version(connection, printable(name), wanted)

    def proven_facts(self, weights: str, approximate: int, base_digest: str) -> VersionFacts | None:
        """What is known of files that were run on this base model like this, whichever name and profile they have."""
        with self.database.read() as connection:
            return reading.proven_facts(connection, weights, approximate, base_digest)

    def names_serving(self, weights: Iterable[str]) -> tuple[str, ...]:
        """The names whose active version is made of files with one of these digests."""
        with self.database.read() as connection:
            return tuple(reading.names_serving(connection, weights))

    def weights_serving(self, weights: Iterable[str]) -> dict[str, str]:
        """Those of these digests of files that some name's active version is made of, and the first such name of each.

        As long as that name doesn't change, its files serve.
        """
        with self.database.read() as connection:
            return reading.weights_serving(connection, weights)

    def weights_in_use(self) -> set[str]:
        """The digest of every blob that some name's history refers to."""
        with self.database.read() as connection:
            return reading.weights_in_use(connection)

    def changes(self, since: int) -> tuple[int, tuple[str, ...] | None]:
        """Where changes stand, and the names of adapters and aliases changed after `since`.

        Pass the first on to the next call. None instead of names: anything may have changed, as for a reader that
        fell far behind, or that begins with -1.
        """
        with self.database.read() as connection:
            return changes.since(connection, since)
