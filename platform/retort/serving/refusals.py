"""Counting of what is refused, wherever in the application that happens."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import Request

from retort.serving.errors import as_api_error
from retort.serving.metrics import Metrics

_NOTES = "retort.notes"

Scope = MutableMapping[str, Any]


def note_model(request: Request, name: str) -> None:
    """Say which model a request chose, in case that it is refused."""
    request.scope.get(_NOTES, {})["model"] = name


class CountRefusals:
    """ASGI middleware around all others: counts every answer that is an error, and what breaks off before its answer.

    Refusals before a model was chosen are counted with no model.

    Args:
        app: the application.
        metrics: where to count.
        uncounted: paths that machines ask every second.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], metrics: Metrics, uncounted: frozenset[str]) -> None:
        self._app, self._metrics, self._uncounted = app, metrics, uncounted

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass the request on, and its answer."""
        if scope["type"] != "http" or scope["path"] in self._uncounted:
            await self._app(scope, receive, send)
            return
        notes: dict[str, str] = {}
        has_begun = False

        def count(status: int) -> None:
            if not has_begun and status >= 400:
                self._metrics.count(notes.get("model", ""), str(status))

        async def passed(message: Scope) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                count(message["status"])
                has_begun = True
            await send(message)

        try:
            await self._app({**scope, _NOTES: notes}, receive, passed)
        except asyncio.CancelledError:  # so Ray Serve ends a request whose client has left
            count(499)
            raise
        except Exception as error:  # answered outside of all middleware, with this status
            count(as_api_error(error).status)
            raise
