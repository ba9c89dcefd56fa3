"""TextGrids of a folder, as the Montreal Forced Aligner writes them: one for each recording, with words and phones."""

import hashlib
from collections import defaultdict
from pathlib import Path

from retort.data.utterance import Utterance
from retort.errors import DataError, MissingRequirementError
from retort.inference.aligning import Misaligned
from retort.inference.known_times import Grid
from retort.text.espeak import Span

INSTALL = "pip install 'retort[text_grids]'"
_SILENT = frozenset({"sil", "sp", "spn", "<eps>", "<sil>"})
_SUFFIX = ".TextGrid"


class TextGrids:
    """The grids of a folder and of those below it.

    Args:
        folder: its files are named as the corpus' ids, or as the recordings; of several with one name that in a folder
            named as the speaker counts.

    Raises:
        DataError: there are none.
        MissingRequirementError: ``praatio`` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import praatio  # noqa: F401
        except ImportError:
            raise MissingRequirementError(f"praatio is not installed, which reads TextGrids; {INSTALL}") from None
        self._paths: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(folder.rglob(f"*{_SUFFIX}")):
            self._paths[path.stem].append(path)
        if not self._paths:
            raise DataError(f"{folder}: no {_SUFFIX} files there, nor below; give the output folder of `mfa align`")

    def fingerprint(self) -> str:
        """Of all files."""
        digest = hashlib.sha256()
        for path in sorted(path for paths in self._paths.values() for path in paths):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return f"text_grids-{digest.hexdigest()[:16]}"

    def of(self, utterance: Utterance) -> Grid:
        """The grid of a recording.

        Raises:
            Misaligned: no_grid, several_grids or bad_grid.
        """
        names = [utterance.id, *([utterance.audio.stem] if isinstance(utterance.audio, Path) else [])]
        paths = next((self._paths[name] for name in names if name in self._paths), [])
        if len(paths) > 1:
            paths = [path for path in paths if path.parent.name == utterance.speaker]
            if len(paths) != 1:
                raise Misaligned("several_grids", f"several files are named {names[0]}{_SUFFIX}, of other speakers")
        if not paths:
            raise Misaligned("no_grid", f"no file is named {' or '.join(f'{name}{_SUFFIX}' for name in names)}")
        return read_grid(paths[0])


def read_grid(path: Path) -> Grid:
    """The tiers of words and phones; those of the first speaker, where there are several.

    Raises:
        Misaligned: bad_grid.
    """
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    try:
        found = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="silence")
        return Grid(*(_tier(found, name) for name in ("words", "phones")))
    except (PraatioException, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise Misaligned("bad_grid", f"{path.name}: {str(error)[:200] or type(error).__name__}") from None


def _tier(grid: "textgrid.Textgrid", ending: str) -> tuple[Span, ...]:  # type: ignore[name-defined]  # noqa: F821
    name = next((name for name in grid.tierNames if name.casefold().endswith(ending)), None)
    if name is None:
        raise ValueError(f"no tier is called {ending}; there are {', '.join(grid.tierNames) or 'none'}")
    return tuple(
        Span("" if entry.label.strip().casefold() in _SILENT else entry.label.strip(), entry.start, entry.end)
        for entry in grid.getTier(name).entries
    )
