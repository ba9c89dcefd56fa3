"""The gate before every route: API keys, where the application has them."""

import base64
import binascii
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from retort.serving.errors import ApiError
from retort.serving.keys import ApiKeys

OPEN_ROUTES = frozenset({"/health/live", "/health/ready"})
"""What answers without a key; load balancers have none."""

Scope = MutableMapping[str, Any]


class Gate:
    """ASGI middleware. It stands before the router, so that a new route is behind it, whoever adds it.

    Args:
        app: the application.
        keys: None opens everything.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], keys: ApiKeys | None) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass the request on, or answer 401."""
        is_open = scope["type"] != "http" or self._keys is None or scope["path"] in OPEN_ROUTES
        if is_open or self._keys.accepts(_bearer(Headers(scope=scope).get("authorization"))):  # type: ignore[union-attr]
            await self._app(scope, receive, send)
            return
        error = ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        # Browsers ask for a name and a password then; the password is the key, the name does not matter.
        headers = {"WWW-Authenticate": 'Basic realm="Retort", charset="UTF-8"'}
        await JSONResponse(error.body(), status_code=401, headers=headers)(scope, receive, send)


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
