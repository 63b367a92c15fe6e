"""How Ray chooses a replica: its own router's extension point over the order that `ray_routing` finds."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from livery.scale.ray_routing import Standing, is_among, ranked

IDS, ONGOING = "ids", "ongoing"  # what a replica's routing stats have its ids under, and its requests under way


class AdapterRouter(RequestRouter):  # type: ignore[misc]  # Ray is not there when types are checked
    """Requests for an adapter go where it is in memory, spill when that replica is busy, and cold ones spread."""

    def initialize_state(self, busy_at: int) -> None:
        """Ray calls it with the router's keyword arguments; `busy_at` are requests under way on a replica."""
        self._busy_at = busy_at
        self._ids: dict[str, frozenset[str]] = {}
        self._ongoing: dict[str, int] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray calls it whenever replicas come, go or say something new of themselves."""
        told = {one.replica_id.unique_id: one.routing_stats or {} for one in replicas}
        self._ids = {name: frozenset(stats.get(IDS, ())) for name, stats in told.items()}
        self._ongoing = {name: int(stats.get(ONGOING, 0)) for name, stats in told.items()}
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The ranks in which Ray is to ask replicas whether they take a request."""
        told = ""
        if pending_request is not None:
            told = pending_request.metadata.multiplexed_model_id
            pending_request.routing_context.should_backoff = True  # where nobody takes it
        by_id = {one.replica_id.unique_id: one for one in candidate_replicas}
        standing = [
            Standing(name, is_among(self._ids.get(name, ()), told), self._under_way(name, one))
            for name, one in by_id.items()
        ]
        return [[by_id[one.replica] for one in rank] for rank in ranked(told, standing, self._busy_at)]

    def _under_way(self, name: str, replica: RunningReplica) -> int:
        """What Ray knows of it, since it answered lately; else what it said of itself."""
        known = self.replica_queue_len_cache.get(replica.replica_id)
        return self._ongoing.get(name, 0) if known is None else known
