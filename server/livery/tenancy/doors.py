"""The doors: one API key for everything so far, and routes that open to this machine only.

Knows no HTTP beyond the words a request carries: an authorization value, an address, a host name.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import replace

from livery.tenancy.records import OPERATOR, Principal


class InvalidApiKey(Exception):
    """No key, or not the right one; both look the same from outside."""

    def __init__(self) -> None:
        super().__init__("Missing or invalid API key; send it as: Authorization: Bearer <key>.")


class NotLocal(Exception):
    """A management route was called from another machine, or by somebody who can't be told from one."""


# Who sends a management request that is refused, and what to do instead.
ELSEWHERE = (
    "Adapters are managed from the machine the server runs on: call this route there, through 127.0.0.1 and not "
    "through a proxy."
)
UNIX_SOCKET = (
    "Adapters can't be managed through a Unix socket, behind which a proxy looks like this machine: start the server "
    "with --host 127.0.0.1 instead of --uds to manage them."
)
WEB_PAGE = (
    "Adapters can't be managed by web pages of other origins, whatever --cors-origins lists: call this route from a "
    "program on the machine the server runs on, such as curl or livery adapters."
)
PROXY_WITHOUT_KEY = (
    "With --root-path a proxy is in front of this server, and whom it lets through can't be told from this machine: "
    "start the server with --api-key KEY as well to manage adapters."
)


class OpenDoor(Exception):
    """The server would listen beyond this machine without a key."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"host {host} is reachable from other machines and no API key is set: anyone could use this server. "
            "Add --api-key KEY (or LIVERY_API_KEY), or accept that with --insecure-no-auth, or bind to 127.0.0.1"
        )


class Doors:
    """Checks the key and the caller of each request.

    `api_key` None: no key is asked for; it is sent as UTF-8. `behind_proxy`: somebody on this machine passes on
    requests of others, whether it says so in each or not.
    """

    def __init__(self, api_key: str | None, *, behind_proxy: bool = False) -> None:
        self._behind_proxy = behind_proxy
        # Digests are compared, so that neither time nor length says anything about the key.
        self._digest = _digest(api_key.encode()) if api_key is not None else None

    def check_key(self, authorization: bytes) -> Principal:
        """Whom a key belongs to. `authorization` is the header's value, empty where there is none.

        Raises InvalidApiKey.
        """
        if self._digest is None:
            return OPERATOR
        scheme, _, key = authorization.partition(b" ")
        same = hmac.compare_digest(_digest(key.strip()), self._digest)
        if scheme.lower() != b"bearer" or not same:
            raise InvalidApiKey
        return replace(OPERATOR, key=self._digest.hex()[:16])

    def check_local(self, client: str | None, host: str, *, forwarded: bool) -> None:
        """For management routes. Raises NotLocal.

        `client` is the address at the other end of the socket, `host` the Host header. `forwarded`: the request
        says that somebody passed it on, so the socket's address isn't the caller's. The Host header must name
        this machine too, so that a web page can't reach the route by having its own name resolve to 127.0.0.1.
        """
        if client is None:
            raise NotLocal(UNIX_SOCKET)
        if forwarded or not is_loopback(client) or not is_loopback(_host_name(host)):
            raise NotLocal(ELSEWHERE)
        if self._behind_proxy and self._digest is None:
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


def check_binding(host: str, api_key: str | None, insecure_no_auth: bool) -> None:
    """Raises OpenDoor when listening on `host` would let strangers in."""
    if not is_loopback(host) and api_key is None and not insecure_no_auth:
        raise OpenDoor(host)


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


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
