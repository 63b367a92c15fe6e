"""What the registry should do, in memory and plain Python: the other half of its random walks."""

from __future__ import annotations

from dataclasses import dataclass, field

from livery_adapters.registry import VersionFacts


@dataclass
class Held:
    """One version in a name's history."""

    number: int
    facts: VersionFacts
    state: str


@dataclass
class Name:
    """One name. `stack` holds the digests that were active, the active one last."""

    source: str
    generation: int = 0
    history: dict[str, Held] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)
    last_number: int = 0
    retired: bool = False
    pinned: bool = False
    error: str | None = None
    folder: str | None = None

    @property
    def active(self) -> Held | None:
        return self.history[self.stack[-1]] if self.stack else None

    @property
    def state(self) -> str:
        if self.active:
            return self.active.state
        return "failed" if self.error else "retired" if self.retired else "registered"

    @property
    def seen_generation(self) -> int:
        return 0 if self.retired else self.generation

    @property
    def visible(self) -> bool:
        return self.state != "retired"

    def put(self, facts: VersionFacts, source: str, state: str, activate: bool) -> None:
        """What Registry.put does once nothing speaks against it."""
        self.error = None
        if source == "folder" and self.folder == facts.digest:
            if state == "ready":
                self._run(facts)
            return
        self.source, self.retired = source, False
        if source == "folder":
            self.folder = facts.digest
        is_new = facts.digest not in self.history
        if is_new:
            self.last_number += 1
            self.history[facts.digest] = Held(self.last_number, facts, state)
        elif state == "ready" and self.history[facts.digest].state != "ready":
            self._run(facts)
        moves = activate and (not self.stack or self.stack[-1] != facts.digest)
        if self.active and self.active.state == "ready" and self.history[facts.digest].state != "ready":
            moves = False
        if moves:
            self.stack.append(facts.digest)
        self.generation += is_new or moves

    def _run(self, facts: VersionFacts) -> None:
        """The engine knows files, not profiles: every version of these files is ready."""
        for held in self.history.values():
            if held.facts.weights == facts.weights:
                held.state = "ready"

    def move(self, digest: str) -> None:
        if self.stack and self.stack[-1] == digest:
            return
        self.stack.append(digest)
        self.generation += 1
        self.error = None

    def rolled_back(self) -> list[str] | None:
        """The stack after a rollback, None when there is nothing to go back to."""
        rest = self.stack[:-1]
        while rest and (rest[-1] not in self.history or rest[-1] == self.stack[-1]):
            rest.pop()
        return rest or None

    def retire(self) -> None:
        self.history.clear()
        self.stack.clear()
        self.retired, self.pinned, self.error = True, False, None
        self.generation += 1

    def withdraw(self) -> bool:
        self.folder = None
        if self.source != "folder" or not self.visible:
            return False
        self.retire()
        return True

    def surplus(self, keep: int) -> list[str]:
        """Digests that a trim drops."""
        newest = sorted(self.history.values(), key=lambda held: -held.number)
        kept = {held.facts.digest for held in newest[:keep]} | set(self.stack[-1:])
        return [] if self.pinned else [digest for digest in self.history if digest not in kept]
