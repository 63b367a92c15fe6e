"""The admin API beside the server's own: another address, in the same process and on the same loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

from livery.api.app import create_admin_app
from livery.api.edges import EdgeConfig, EdgeServer
from livery.assembly import ServerParts
from livery.listening import Listener
from livery.serving import ServingKeys
from livery.settings import Settings, revealed
from livery.tenancy import Doors, TenantManagement, TenantStore, check_admin_binding

GRACE_S = 2  # verbs are done within that


def check_admin_doors(settings: Settings, tenants: TenantStore) -> None:
    """Raises OpenDoor when the settings would open the admin API to strangers."""
    if settings.admin_port is not None:
        opens = settings.admin_key is not None or tenants.has_admin()
        check_admin_binding(settings.admin_host, opens=opens)


@asynccontextmanager
async def admin_api(settings: Settings, parts: ServerParts, listener: Listener | None) -> AsyncIterator[None]:
    """Answer on `listener`, if there is one, as long as the block runs."""
    if listener is None:
        yield
        return
    doors = Doors(
        revealed(settings.api_key),
        ring=parts.keys,
        metrics_key=revealed(settings.metrics_key),
        admin_key=revealed(settings.admin_key),
        own_socket=listener.uds is not None,
    )
    keys = ServingKeys(parts.keys, parts.service.survey)
    tenants = TenantManagement(parts.tenants, lambda: nullcontext(parts.registry), keys)
    server = BesideServer(
        EdgeConfig(
            create_admin_app(parts.service, tenants, doors, parts.usage),
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=listener.tls.certificate if listener.tls else None,
            ssl_keyfile=listener.tls.key if listener.tls else None,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener.socket]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class BesideServer(EdgeServer):
    """Signals are for the server whose beside it is."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
