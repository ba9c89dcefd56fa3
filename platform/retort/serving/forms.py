"""Forms of one file and some texts, read without trusting them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from retort.serving.errors import ApiError

OVERHEAD_BYTES = 16_384
"""What a form may hold beside its file."""
_FIELD_BYTES = 4096
_UNKNOWN_FIELDS = 20


@dataclass(frozen=True)
class Form:
    """The file's bytes, the texts that were given, and names of unknown fields that were let pass."""

    file: bytes
    texts: Mapping[str, str]
    ignored: tuple[str, ...] = ()


async def read_form(
    request: Request, body: bytes, *, file_field: str, others: Sequence[str], max_bytes: int, lenient: bool = False
) -> Form:
    """The fields of a body of ``multipart/form-data``.

    Args:
        request: whose headers say where the fields part.
        body: all of it.
        file_field: the one that must be a file, and must be there.
        others: those that may be there, as texts.
        max_bytes: of the file.
        lenient: let a few unknown texts pass.

    Raises:
        ApiError: 400 or 413.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    fields = (file_field, *others)
    max_fields = len(fields) + (_UNKNOWN_FIELDS if lenient else 0)
    parser = MultiPartParser(
        request.headers, stream(), max_files=1, max_fields=max_fields, max_part_size=_FIELD_BYTES
    )  # fmt: skip
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError, AttributeError) as error:
        wanted = ", ".join(fields)
        raise ApiError(
            400, f"the body is not a form of the fields {wanted}, of which {file_field} is a file"
        ) from error
    try:
        unknown = [field for field in form if field not in fields]
        given = [(field, value) for field, value in form.multi_items() if field in fields]
        for field in unknown:
            if not lenient:
                raise ApiError(400, "unknown field; there are " + ", ".join(fields), param=_printable(field))
        found = dict(given)
        if len(found) != len(given):
            raise ApiError(400, "a field is given twice")
        sample = found.pop(file_field, None)
        if sample is None:
            raise ApiError(400, f"the field {file_field} is missing", param=file_field)
        texts = {name: text for name, text in found.items() if isinstance(text, str)}
        if not isinstance(sample, UploadFile) or len(texts) != len(found):
            raise ApiError(400, f"{file_field} must be a file, and the others texts", param=file_field)
        encoded = await sample.read()
    finally:
        await form.close()
    if len(encoded) > max_bytes:
        raise ApiError(413, f"the file is larger than {max_bytes} bytes", code="body_too_large")
    return Form(encoded, texts, tuple(unknown))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:60]
