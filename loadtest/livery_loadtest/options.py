"""How a script is driven: what the workload says of it, besides the requests."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from livery_loadtest.dialect import Dialect
from livery_loadtest.kinds import Closed
from livery_loadtest.spec import Workload
from livery_loadtest.target import Target, TargetUnusable

CONNECT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`streams` of a closed loop, 0 in an open one, which sends nothing after `duration_s` unless that is 0.

    `key_envs`: tenant -> environment variable with its key. `silence_s` is how long nothing of an answer may come,
    `whole_s` how long all of it may take.
    `keep_text`: answers' texts go into the records. `fold`: for long runs, times between events are folded into
    `Run.gaps`, and neither they nor the prompts stay in the records.
    """

    repeat: int = 0
    streams: int = 0
    dialect: Dialect = field(default_factory=Dialect)
    duration_s: float = 0.0
    silence_s: float = 300.0
    whole_s: float = math.inf
    connect_s: float = CONNECT_S
    key_envs: Mapping[str, str] = field(default_factory=dict)
    keep_text: bool = False
    fold: bool = False

    @classmethod
    def of(cls, workload: Workload, *, repeat: int = 0, keep_text: bool = False, fold: bool = False) -> Options:
        """As a workload says."""
        arrivals = workload.arrivals
        return cls(
            repeat=repeat,
            streams=arrivals.streams if isinstance(arrivals, Closed) else 0,
            dialect=Dialect(workload.endpoint == "chat", workload.ignore_eos, workload.temperature),
            duration_s=workload.duration_s,
            silence_s=workload.timeout_s,
            whole_s=workload.timeout_s,
            connect_s=min(CONNECT_S, workload.timeout_s),
            key_envs={tenant.name: tenant.key_env for tenant in workload.tenants},
            keep_text=keep_text,
            fold=fold,
        )

    def keys(self, target: Target) -> dict[str | None, str | None]:
        """Tenant -> key, out of the environment; None -> the key of requests without a tenant. Raises TargetUnusable.

        Keys are looked up where they are sent from: they are in no message between processes, and in no report.
        """
        missing = [f"{name} (tenant {tenant})" for tenant, name in self.key_envs.items() if not os.environ.get(name)]
        if missing:
            raise TargetUnusable(
                f"target {target.name}: no key in {', '.join(missing)}; put each tenant's key into its variable"
            )
        keys: dict[str | None, str | None] = {tenant: os.environ[name] for tenant, name in self.key_envs.items()}
        return {**keys, None: os.environ.get(target.key_env)}
