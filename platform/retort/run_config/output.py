"""Where a job writes: what can be no folder there is refused with the run file, before any work is done."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from retort.location import Location, RemotePath

_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255 - len(".lock"), 3_500
"""Of file systems, without what is written beside an output, and below it."""


def _can_be_written(output: Path) -> Path:
    """Refuse what no file system, or no store, takes as the name of a folder.

    Raises:
        ValueError: names what is wrong, and the cure.
    """
    if "\0" in str(output):
        raise ValueError(f"{str(output)!r} holds a NUL character, which names of folders cannot; leave it out")
    long = next((part for part in output.parts if len(os.fsencode(part)) > _MAX_NAME_BYTES), None)
    if long is not None:
        raise ValueError(
            f"{long[:40]}… has {len(os.fsencode(long))} bytes, and the name of an output's folder at most "
            f"{_MAX_NAME_BYTES}; shorten it"
        )
    whole = str(output if isinstance(output, RemotePath) else Path(os.path.normpath(output.absolute())))
    if len(os.fsencode(whole)) > _MAX_PATH_BYTES:
        raise ValueError(f"the whole path has {len(os.fsencode(whole))} bytes, at most {_MAX_PATH_BYTES}; shorten it")
    return output


Output = Annotated[Location, AfterValidator(_can_be_written)]
"""A folder that a job writes, here or in a store."""
LocalOutput = Annotated[Path, AfterValidator(_can_be_written)]
"""One that must be here."""
