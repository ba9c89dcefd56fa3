"""The gates around every route: API keys before them, and behind them, that no sound leaves without its mark."""

import base64
import binascii
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import IPv6Network, ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from retort.serving.errors import ApiError
from retort.serving.keys import ApiKeys

OPEN_ROUTES = frozenset({"/health/live", "/health/ready"})
"""What answers without a key; load balancers have none."""

_WINDOW_S, _MAX_ADDRESSES = 60.0, 10_000

PROVENANCE = "X-Provenance"
"""Header of speech that is marked: the signed statement, or the watermark's name."""
_SOUND = ("audio/", "text/event-stream")

Scope = MutableMapping[str, Any]


class Failures:
    """Wrong keys by address: whoever sends many is told to wait, and costs nothing more than that.

    Args:
        most: wrong keys of one address in a minute.
        clock: seconds.
    """

    def __init__(self, most: int = 30, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, address: str) -> bool:
        """Count one; whether it is too many."""
        now = self._clock()
        begun, count = self._counts.pop(address, (now, 0))
        if now - begun > _WINDOW_S:
            begun, count = now, 0
        self._counts[address] = (begun, count + 1)
        if len(self._counts) > _MAX_ADDRESSES:
            self._counts.popitem(last=False)
        return count + 1 > self._most


class Gate:
    """ASGI middleware. It stands before the router, so that a new route is behind it, whoever adds it.

    Args:
        app: the application.
        keys: None opens everything.
        client_header: see :class:`retort.serving.settings.ServeConfig`.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], keys: ApiKeys | None, client_header: str | None = None
    ) -> None:
        self._app, self._keys, self._client_header, self._failures = app, keys, client_header, Failures()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass the request on, or answer 401, or 429 to an address that keeps guessing."""
        is_open = scope["type"] != "http" or self._keys is None or scope["path"] in OPEN_ROUTES
        if is_open or self._keys.accepts(_bearer(Headers(scope=scope).get("authorization"))):  # type: ignore[union-attr]
            await self._app(scope, receive, send)
            return
        if self._failures.add(client_of(scope, self._client_header)):
            error = ApiError(429, "too many wrong keys from this address", kind="rate_limit_error", code="too_many")
            headers = {"Retry-After": str(int(_WINDOW_S))}
            await JSONResponse(error.body(), status_code=429, headers=headers)(scope, receive, send)
            return
        error = ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        # Browsers ask for a name and a password then; the password is the key, the name does not matter.
        headers = {"WWW-Authenticate": 'Basic realm="Retort", charset="UTF-8"'}
        await JSONResponse(error.body(), status_code=401, headers=headers)(scope, receive, send)


def client_of(scope: Scope, header: str | None) -> str:
    """Whose request it is: an address, or of IPv6 the network of 64 bits, all of which one subscriber has.

    Args:
        scope: of the request.
        header: in which a proxy says so; where it is not there, or holds no address, the connection's counts.
    """
    told = Headers(scope=scope).getlist(header) if header is not None else []
    peer = (scope.get("client") or ("",))[0]
    for name in (",".join(told).rpartition(",")[2].strip(), peer):
        try:
            address = ip_address(name)
        except ValueError:
            continue
        if address.version == 4:
            return str(address)
        mapped = address.ipv4_mapped
        return str(mapped) if mapped is not None else str(IPv6Network((int(address), 64), strict=False))
    return str(peer)


class MarkGate:
    """ASGI middleware of an application that marks its speech: an answer with sound and without a mark becomes 500.

    It stands around the router, so that a new route that forgets the mark says nothing.

    Args:
        app: the application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass the answer on, or say why not."""
        is_refused = False

        async def passed(message: Scope) -> None:
            nonlocal is_refused
            if message["type"] == "http.response.start":
                headers = Headers(raw=message.get("headers", []))
                sounds = headers.get("content-type", "").startswith(_SOUND)
                is_refused = sounds and PROVENANCE not in headers
                if is_refused:
                    error = ApiError(500, "this speech is not marked", kind="server_error", code="not_marked")
                    await JSONResponse(error.body(), status_code=500)(scope, receive, send)
            if not is_refused:
                await send(message)

        await self._app(scope, receive, passed)


def _bearer(authorization: str | None) -> str | None:
    """A browser's ``Basic`` header as ``Bearer``: its password is the key."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None
    return f"Bearer {password}"
