"""``POST /v1/audio/detect``: whether a recording carries the marks of this server's speech."""

import asyncio
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from retort.audio.marked_files import raw_samples
from retort.audio.provenance import Provenance
from retort.serving.bodies import read_body
from retort.serving.decode_sample import read_marked_apart
from retort.serving.errors import ApiError
from retort.serving.forms import OVERHEAD_BYTES, read_form
from retort.serving.requests import ignored_fields
from retort.serving.settings import ServeConfig

_FILE, _OTHERS = "file", ("format", "statement")
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [_FILE],
                "additionalProperties": False,
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "format": {"enum": ["pcm"], "description": "For raw samples, which say nothing of themselves."},
                    "statement": {"type": "string", "description": "The X-Provenance header that came with them."},
                },
            }
        }
    },
}
STATUSES = {
    400: "A field is wrong; `error.param` names it.",
    403: "This server marks nothing, so it can find nothing.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not multipart/form-data.",
    422: "The file cannot be read.",
}


class Detector:
    """The handler.

    Args:
        config: of the application.
        provenance: what it marks with; None where it does not.
    """

    def __init__(self, config: ServeConfig, provenance: Provenance | None) -> None:
        self._limits, self._provenance, self._lenient = config.limits, provenance, config.lenient

    async def create(self, request: Request) -> JSONResponse:
        """Look for the marks. That none is found proves nothing: marks can be lost and taken out."""
        if self._provenance is None:
            raise ApiError(403, "this server marks no speech, and so finds no marks", code="provenance_off")
        settings = self._provenance.config
        body = await read_body(
            request,
            max_bytes=settings.detect_max_bytes + OVERHEAD_BYTES,
            timeout_s=self._limits.body_timeout_s,
            content_type="multipart/form-data",
        )
        limit, lenient = settings.detect_max_bytes, self._lenient
        form = await read_form(request, body, file_field=_FILE, others=_OTHERS, max_bytes=limit, lenient=lenient)
        kind = form.texts.get("format")
        if kind not in (None, "pcm"):
            raise ApiError(400, "format is pcm, or left out for files with a header", param="format")
        if kind == "pcm":
            marked = raw_samples(form.file)
        else:
            marked = await read_marked_apart(form.file, max_seconds=settings.detect_max_seconds)
        comment = form.texts.get("statement") or marked.comment
        findings = await asyncio.to_thread(self._provenance.examine, comment, marked.samples_N)
        tree = {"object": "audio.provenance", **findings.as_dict()}
        return JSONResponse(tree, headers=ignored_fields(form.ignored))
