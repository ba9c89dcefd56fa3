"""Compile the C files for this processor, once, and load the library."""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-fno-math-errno")
# No -ffast-math: it would let the compiler reorder sums, and a row's bits would depend on the batch.
_LONGEST_BUILD_S = 300


class NoCompilerError(Exception):
    """The library cannot be built here; the message says why. Torch runs the model instead."""


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The compiled library, from ``~/.cache/retort`` where it was built before.

    Where the home folder cannot be written, it is built anew in each process.

    Raises:
        NoCompilerError: no C compiler, or it failed; its message is quoted.
    """
    sources = _sources()
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise NoCompilerError("no C compiler (cc, gcc or clang) on PATH")
    # -march=native binds the result to this processor, and home folders travel.
    identity = [*sources.values(), *map(str.encode, FLAGS), compiler.encode(), _processor()]
    name = hashlib.sha256(b"\0".join(identity)).hexdigest()
    path = Path.home() / ".cache" / "retort" / f"forward-{name[:24]}.so"
    if path.is_file():
        return _load(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError:
        with tempfile.TemporaryDirectory() as private:
            return _load(_compile(compiler, sources, Path(private)))
    with folder as beside:
        # Two processes may build at once; each renames a whole file, and the files are equal.
        return _load(_compile(compiler, sources, Path(beside)).replace(path))


def _sources() -> dict[str, bytes]:
    """The C files by name; they may lie in an archive."""
    entries = files("retort.inference.native").iterdir()
    found = {entry.name: entry.read_bytes() for entry in entries if entry.name.endswith((".c", ".h"))}
    return dict(sorted(found.items()))


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompilerError(f"{path} does not load: {error}; delete it to build it again") from error


def _compile(compiler: str, sources: Mapping[str, bytes], folder: Path) -> Path:
    for name, content in sources.items():
        (folder / name).write_bytes(content)
    library = folder / "forward.so"
    command = [compiler, *FLAGS, "-o", str(library), str(folder / "forward.c"), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_BUILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompilerError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise NoCompilerError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return library


def _processor() -> bytes:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return " ".join(platform.uname()).encode()
    kept = ("model name", "flags", "Features", "CPU part")
    lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith(kept)]
    return "\n".join(sorted(set(lines))).encode()
