"""Find or compile the C files for this processor, and load the library.

A node of a cluster is taken as it is found: its home may be missing, unwritable or shared with other processors, and it
may have no compiler. An image can bring libraries for stated instruction sets:
``python -m retort.inference.native.build x86-64-v2 x86-64-v3 x86-64-v4``.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-fno-math-errno")
# No -ffast-math: it would let the compiler reorder sums, and a row's bits would depend on the batch.
NATIVE = "native"
_V3 = frozenset(["avx2", "bmi1", "bmi2", "fma", "f16c", "movbe"])
INSTRUCTION_SETS: Mapping[str, frozenset[str]] = {
    "x86-64-v4": _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": _V3,
    "x86-64-v2": frozenset(["cx16", "popcnt", "sse4_1", "sse4_2", "ssse3"]),
    "armv8-a": frozenset(["fp", "asimd"]),
}
"""What ``-march`` calls a set, and the flags of a processor that has it (as Linux names them); the best one first."""
_LONGEST_BUILD_S = 300

_log = logging.getLogger(__name__)


class NoCompilerError(Exception):
    """The library cannot be built here; the message says why. Torch runs the model instead."""


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The compiled library: from this node's cache, else built for this processor, else the one of the image.

    The cache is ``$XDG_CACHE_HOME/retort``, or ``~/.cache/retort``. Where it cannot be written, the library is built
    anew in each process.

    Raises:
        NoCompilerError: no C compiler, or it failed (its message is quoted), and the image brought no library.
    """
    sources = _sources()
    # -march=native binds the result to this processor, and home folders travel.
    name = f"forward-{_digest(sources, NATIVE, _processor())}.so"
    folder = cache_folder()
    if folder is not None and (folder / name).is_file():
        return _load(folder / name)
    try:
        return _built(sources, folder, name)
    except NoCompilerError as error:
        brought = brought_library(_flags(), built_folder())
        if brought is None:
            raise
        _log.warning("decoding in C with the image's %s, which was not built for this processor: %s", brought, error)
        return _load(brought)


def cache_folder() -> Path | None:
    """Where built libraries are kept; None on a machine that knows no home."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():  # the specification has relative ones ignored
        return named / "retort"
    try:
        return Path.home() / ".cache" / "retort"
    except RuntimeError:  # a user id that no password file knows, as clusters give them
        return None


def built_folder() -> Path:
    """Where the libraries of an image lie."""
    return Path(sys.prefix) / "share" / "retort"


def build_for(instruction_sets: Sequence[str], folder: Path) -> list[Path]:
    """Build a library for each of :data:`INSTRUCTION_SETS` that is named; returns their paths.

    Raises:
        NoCompilerError: no C compiler, or it does not know such a set.
    """
    sources, folder = _sources(), folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in instruction_sets:
        if name not in INSTRUCTION_SETS:
            raise NoCompilerError(f"{name} is none of {', '.join(INSTRUCTION_SETS)}")
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            library = _compile(_compiler(), sources, Path(beside), march=name)
            paths.append(library.replace(folder / _brought_name(sources, name)))
    return paths


def brought_library(flags: frozenset[str], folder: Path) -> Path | None:
    """The best library in ``folder`` of these very sources that a processor with these flags can run."""
    sources = _sources()
    paths = [folder / _brought_name(sources, name) for name, needed in INSTRUCTION_SETS.items() if needed <= flags]
    return next((path for path in paths if path.is_file()), None)


def _built(sources: Mapping[str, bytes], folder: Path | None, name: str) -> ctypes.CDLL:
    compiler = _compiler()
    try:
        if folder is None:
            raise FileNotFoundError("no home folder")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        _log.warning("%s: %s; the C engine is built anew in each process", folder or "~", error.strerror or error)
        with tempfile.TemporaryDirectory() as private:
            return _load(_compile(compiler, sources, Path(private), march=NATIVE))
    with temporary as beside:
        # Two processes may build at once; each renames a whole file, and the files are equal.
        return _load(_compile(compiler, sources, Path(beside), march=NATIVE).replace(Path(beside).parent / name))


def _sources() -> dict[str, bytes]:
    """The C files by name; they may lie in an archive."""
    entries = files("retort.inference.native").iterdir()
    found = {entry.name: entry.read_bytes() for entry in entries if entry.name.endswith((".c", ".h"))}
    return dict(sorted(found.items()))


def _digest(sources: Mapping[str, bytes], march: str, processor: bytes = b"") -> str:
    identity = [*sources.values(), *map(str.encode, FLAGS), march.encode(), processor]
    return hashlib.sha256(b"\0".join(identity)).hexdigest()[:24]


def _brought_name(sources: Mapping[str, bytes], march: str) -> str:
    return f"forward-{march}-{_digest(sources, march)}.so"


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompilerError(f"{path} does not load: {error}; delete it to build it again") from error


def _compiler() -> str:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise NoCompilerError("no C compiler (cc, gcc or clang) on PATH")
    return compiler


def _compile(compiler: str, sources: Mapping[str, bytes], folder: Path, *, march: str) -> Path:
    for name, content in sources.items():
        (folder / name).write_bytes(content)
    library = folder / "forward.so"
    command = [compiler, *FLAGS, f"-march={march}", "-o", str(library), str(folder / "forward.c"), "-lm"]
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


def _flags() -> frozenset[str]:
    """What this processor has, as Linux names it; nothing elsewhere."""
    lines = _processor().decode().splitlines()
    return frozenset(flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()[1:])


if __name__ == "__main__":
    for built in build_for(sys.argv[1:], built_folder()):
        sys.stdout.write(f"{built}\n")
