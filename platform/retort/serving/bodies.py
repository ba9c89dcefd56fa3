"""Reading a body without trusting what it says of itself."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from retort.serving.errors import ApiError

_READ_ON = 4
"""How many times the limit is read, and thrown away, before the connection is closed: whoever is cut off while it still
sends sees a broken connection instead of the answer."""


async def read_body(
    request: Request, *, max_bytes: int, timeout_s: float, content_type: str = "application/json"
) -> bytes:
    """The whole body, counted while it arrives.

    Args:
        request: whose body.
        max_bytes: more is refused, whatever its headers say.
        timeout_s: longest pause between two parts, and ten times that in all.
        content_type: any other is refused.

    Raises:
        ApiError: 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != content_type:
        raise ApiError(415, f"the body must be {content_type}", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not read", code="unsupported_media_type")
    too_large = ApiError(
        413, f"the body is larger than {max_bytes} bytes", code="body_too_large", headers={"Connection": "close"}
    )  # fmt: skip
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > _READ_ON * max_bytes:
        raise too_large
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(10 * timeout_s):
            async for part in _parts(request, timeout_s):
                received += len(part)
                if received <= max_bytes:
                    body += part
                elif received > _READ_ON * max_bytes:
                    break
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", code="timeout") from None
    except ClientDisconnect:
        raise ApiError(499, "the client has left", code="client_left") from None
    if received > max_bytes:
        raise too_large
    return bytes(body)


async def _parts(request: Request, timeout_s: float) -> AsyncIterator[bytes]:
    parts = request.stream()
    while True:
        try:
            yield await asyncio.wait_for(anext(parts), timeout_s)
        except StopAsyncIteration:
            return
