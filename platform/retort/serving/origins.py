"""What other websites may do here through the browser of a user: nothing, unless they are listed.

A browser sends a form, or a ``no-cors`` request, to any address that its user can reach, with the key that it keeps.
And a website whose name is made to lead to this machine (DNS rebinding) is, for the browser, this server's own page.
"""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from retort.serving.errors import ApiError

NO_FRAMES = {"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY"}
"""Headers of a page that no other page may show inside itself, where its buttons could be clicked unseen."""
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods whose routes neither speak nor change anything; what they answer, browsers keep from other websites."""
_OWN = frozenset({"same-origin", "none"})
_PRIVATE = (".localhost", ".internal")
"""Domains that nobody can own."""

Scope = MutableMapping[str, Any]


class OriginGate:
    """ASGI middleware: refuses what another website makes a browser send, and requests for a foreign host.

    Clients that are no browsers send neither ``Origin`` nor ``Sec-Fetch-Site``, and pass.

    Args:
        app: the application.
        origins: websites that may do everything, as ``https://name``; ``*`` is all of them.
        hosts: names that this server is reached by; None takes any.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], origins: Sequence[str], hosts: Sequence[str] | None
    ) -> None:
        self._app, self._origins = app, frozenset(map(str.lower, origins))
        self._hosts = None if hosts is None else frozenset(map(str.lower, hosts))

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass the request on, or answer 403 or 421."""
        error = self._fault(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await JSONResponse(error.body(), status_code=error.status)(scope, receive, send)

    def _fault(self, method: str, headers: Headers) -> ApiError | None:
        host = headers.get("host", "").lower()
        if self._hosts is not None and not _is_ours(host, self._hosts):
            message = "this server has no such host; to reach it by this name, list it under hosts in the serving file"
            return ApiError(421, message, code="unknown_host")
        if method in _HARMLESS:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none").lower()
        if origin is None:
            is_ours = site in _OWN
        else:
            is_listed = "*" in self._origins or origin.lower() in self._origins
            is_ours = is_listed or (_is_at(origin, host) and site in _OWN)
        if is_ours:
            return None
        message = "another website may not use this server; to let it, list its origin under cors_origins"
        return ApiError(403, message, code="cross_site")


def _is_at(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this host; TLS may have ended at a proxy, so the scheme says nothing."""
    try:
        parts = urlsplit(origin.lower())
        usual = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    except ValueError:
        return False
    return bool(parts.netloc) and parts.netloc.removesuffix(usual) == host.removesuffix(usual)


def _is_ours(host: str, hosts: frozenset[str]) -> bool:
    """Whether no stranger can have brought a browser here by this name: addresses and single words have no owner."""
    name = _without_port(host)
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return name in hosts or host in hosts or "." not in name.rstrip(".") or name.rstrip(".").endswith(_PRIVATE)
    return True


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and (":" not in name or name.endswith("]")) else host
