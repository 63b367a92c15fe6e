"""The ports that Ray gives to the proxies and ingresses of a cluster: the same on every cluster unless it is told."""

from __future__ import annotations

import os

INGRESSES = 50  # ports of one cluster


def ports_of(place: int) -> dict[str, str]:
    """Variables for the cluster number `place`, 0 or 1, of a run.

    Beyond cluster.OWN_PORTS, apart from those of another run on this machine, and below what the system gives to
    connections: nobody comes between asking and binding.
    """
    ingress = 26_000 + (os.getpid() % 50 * 2 + place) * INGRESSES
    proxy = 31_000 + (os.getpid() % 400 * 2 + place) * 2
    return {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ingress),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ingress + INGRESSES - 1),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(proxy),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(proxy + 1),
    }
