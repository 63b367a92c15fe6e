"""The doors: whose key a request brings, what its role may call, and what opens to this machine only.

Knows no HTTP beyond the words a request carries: an authorization value, an address, a host name.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

from livery.tenancy.keys import KeyRing
from livery.tenancy.records import OPERATOR, Principal, Role
from livery.tenancy.secrets import MAX_KEY, digest

# What a route is for, which decides who may call it. open: anybody. ask: whoever has a key. manage: owners and admins.
# scrape: the scraper's own key, and admins. operate: admins, on the admin API.
Purpose = Literal["open", "ask", "manage", "scrape", "operate"]
MAY: Mapping[Purpose, tuple[Role, ...]] = {
    "open": ("user", "owner", "admin"),
    "ask": ("user", "owner", "admin"),
    "manage": ("owner", "admin"),
    "scrape": ("admin",),
    "operate": ("admin",),
}
SCRAPER = Principal(role="user")  # may read the series, which is all that its key opens


class InvalidApiKey(Exception):
    """No key, or not the right one; both look the same from outside."""

    def __init__(self) -> None:
        super().__init__("Missing or invalid API key; send it as: Authorization: Bearer <key>.")


class RoleNotAllowed(Exception):
    """The key is right, and its role isn't one that may call this kind of route, whatever the route names."""

    def __init__(self, role: Role, purpose: Purpose) -> None:
        wanted = " or ".join(one for one in get_args(Role) if one in MAY[purpose])
        super().__init__(
            f"This key has the role {role}, and this route is for the role {wanted}; ask with such a key, which the "
            f"server's operator makes with: livery keys create --role {wanted.split()[0]}"
        )


class NotLocal(Exception):
    """A management route was called from another machine, or by somebody who can't be told from one."""


# Who sends a management request that is refused, and what to do instead.
ELSEWHERE = (
    "Without a key that says who sends it, this route is for the machine the server runs on: call it there, through "
    "127.0.0.1 and not through a proxy, or with a key of the role owner or admin (livery keys create)."
)
UNIX_SOCKET = (
    "Without a key that says who sends it, this route can't be called through a Unix socket, behind which a proxy "
    "looks like this machine: use a key of the role owner or admin (livery keys create), or start the server with "
    "--host 127.0.0.1 instead of --uds."
)
WEB_PAGE = (
    "Without a key that says who sends it, this route is closed to web pages of other origins, whatever --cors-origins "
    "lists: call it from a program on the machine the server runs on, such as curl or livery adapters."
)
PROXY_WITHOUT_KEY = (
    "A proxy is in front of this server (--root-path, or Ray Serve), and whom it lets through can't be told from this "
    "machine: use a key of the role owner or admin (livery keys create), or start the server with an operator's key "
    "(--api-key KEY or LIVERY_API_KEY)."
)


class OpenDoor(Exception):
    """The server would listen beyond this machine without a key."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"host {host} is reachable from other machines and no API key is set: anyone could use this server. "
            "Make one with `livery keys create --tenant NAME --data DIR`, or add --api-key KEY (or LIVERY_API_KEY), or "
            "accept that with --insecure-no-auth, or bind to 127.0.0.1"
        )


class OpenAdminDoor(OpenDoor):
    """The admin API would listen beyond this machine without a key that opens it."""

    def __init__(self, host: str) -> None:
        Exception.__init__(
            self,
            f"--admin-host {host} is reachable from other machines and no key opens the admin API; make one with "
            "`livery keys create --role admin --data DIR`, or add --admin-key KEY (or LIVERY_ADMIN_KEY), or use "
            "--admin-host 127.0.0.1 or --admin-uds PATH",
        )


class Doors:
    """Checks the key and the caller of each request.

    `api_key` is the operator's, None for none; it is sent as UTF-8. `ring` holds the keys that are kept: where neither
    has any, none is asked for. `metrics_key` opens /metrics and nothing else, `admin_key` everything, wherever it comes
    from. `open_metrics`: /metrics asks nobody for a key. `behind_proxy`: somebody on this machine passes on requests of
    others, whether it says so in each or not. `own_socket`: a Unix socket of these doors' own leads here, whose file
    keeps strangers out.
    """

    def __init__(
        self,
        api_key: str | None,
        *,
        ring: KeyRing | None = None,
        metrics_key: str | None = None,
        open_metrics: bool = False,
        admin_key: str | None = None,
        behind_proxy: bool = False,
        own_socket: bool = False,
    ) -> None:
        self._ring = ring
        self._behind_proxy = behind_proxy
        self._own_socket = own_socket
        self._open_metrics = open_metrics
        # Digests are compared, so that neither time nor length says anything about the key.
        self._static: list[tuple[bytes, Principal]] = []
        for given, known_as, anywhere in ((api_key, "static", False), (admin_key, "static-admin", True)):
            if given is not None:
                key = digest(given.encode())
                self._static.append((key, replace(OPERATOR, key=known_as, anywhere=anywhere)))
        self._metrics = digest(metrics_key.encode()) if metrics_key is not None else None

    @property
    def asks(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._static) or (self._ring is not None and self._ring.keyed)

    def admit(self, purpose: Purpose, authorization: bytes) -> Principal:
        """Whom a request comes from, if it may call a route of this purpose.

        `authorization` is the header's value, empty where there is none. Raises InvalidApiKey, RoleNotAllowed.
        """
        if purpose == "open":
            return OPERATOR
        if purpose == "scrape" and self._open_metrics:
            return SCRAPER
        if purpose == "scrape" and self._metrics is not None:
            key = _bearer(authorization)
            if key is not None and hmac.compare_digest(digest(key), self._metrics):
                return SCRAPER
            if not self.asks:
                raise InvalidApiKey
        principal = self.check_key(authorization)
        if principal.role not in MAY[purpose]:
            raise RoleNotAllowed(principal.role, purpose)
        return principal

    def check_key(self, authorization: bytes) -> Principal:
        """Whom a key belongs to, whatever it opens. Raises InvalidApiKey."""
        if not self.asks:
            return OPERATOR
        key = _bearer(authorization)
        if key is None:
            raise InvalidApiKey
        sent = digest(key)
        found = self._ring.find(key) if self._ring is not None else None
        for own, principal in self._static:
            if hmac.compare_digest(sent, own):
                found = principal
        if found is None:
            raise InvalidApiKey
        return found

    def check_local(self, client: str | None, host: str, *, forwarded: bool) -> None:
        """For management routes. Raises NotLocal.

        `client` is the address at the other end of the socket, `host` the Host header. `forwarded`: the request
        says that somebody passed it on, so the socket's address isn't the caller's. The Host header must name
        this machine too, so that a web page can't reach the route by having its own name resolve to 127.0.0.1.
        """
        if client is None and not self._own_socket:
            raise NotLocal(UNIX_SOCKET)
        if forwarded or not is_loopback(client or "localhost") or not is_loopback(_host_name(host)):
            raise NotLocal(ELSEWHERE)
        if self._behind_proxy and not self.asks:
            raise NotLocal(PROXY_WITHOUT_KEY)

    def check_page(self, host: str, origin: str | None, site: str | None) -> None:
        """For management routes: no web page of another origin may send the request. Raises NotLocal.

        A browser sends forms and bodiless requests to any address, this machine's too, and asks nobody before. It
        says so: `origin` is the Origin header, `site` the Sec-Fetch-Site header, `host` the Host header.
        """
        if site not in (None, "same-origin", "none"):
            raise NotLocal(WEB_PAGE)
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise NotLocal(WEB_PAGE)


def check_binding(host: str, insecure_no_auth: bool, *, keyed: bool) -> None:
    """Raises OpenDoor when listening on `host` would let strangers in. `keyed`: some key is asked for."""
    if not is_loopback(host) and not keyed and not insecure_no_auth:
        raise OpenDoor(host)


def check_admin_binding(host: str, *, opens: bool) -> None:
    """Raises OpenDoor when the admin API would let strangers in. `opens`: there is a key that opens it."""
    if not is_loopback(host) and not opens:
        raise OpenAdminDoor(host)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _host_name(host: str) -> str:
    """The name in a Host header: `127.0.0.1:8000`, `[::1]:8000`, `localhost`."""
    if host.startswith("["):
        return host[1 : host.find("]")]
    return host.rsplit(":", 1)[0] if host.count(":") == 1 else host


def _bearer(authorization: bytes) -> bytes | None:
    """The key in the header's value; None where there is none, or something too long to be one."""
    scheme, _, key = authorization.partition(b" ")
    key = key.strip()
    return key if scheme.lower() == b"bearer" and 0 < len(key) <= MAX_KEY else None
