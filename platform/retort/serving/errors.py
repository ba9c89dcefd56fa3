"""Errors in the shape of the OpenAI API."""

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

_AWAY = frozenset({"RayActorError", "ReplicaUnavailableError", "DeploymentUnavailableError"})
"""What Ray calls a replica that has died, or is not there yet: by name, because the API also runs without Ray."""


class ApiError(Exception):
    """An error that the client is told.

    Args:
        status: of HTTP.
        message: for a person.
        kind: ``type`` of the error object.
        param: the field that is at fault.
        code: for a program.
        headers: more headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def overloaded(retry_after_s: float) -> ApiError:
    """Too much audio is waiting already."""
    seconds = max(1, round(retry_after_s))
    message = f"too many seconds of speech are waiting; try again in {seconds} s"
    return ApiError(
        429, message, kind="rate_limit_error", code="overloaded", headers={"Retry-After": str(seconds)}
    )  # fmt: skip


def as_api_error(error: Exception) -> ApiError:
    """What the client is told of any error: nothing of the server's insides."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, error.detail, headers=error.headers)
    if any(kind.__name__ in _AWAY for kind in type(error).__mro__):
        headers = {"Retry-After": "5"}
        return ApiError(
            503, "the model is not there; it is being started", kind="server_error", code="unavailable", headers=headers
        )  # fmt: skip
    return ApiError(500, "the server failed", kind="server_error", code="internal_error")
