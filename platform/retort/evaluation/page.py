"""HTML files that open from disk: everything inside, and a policy that allows nothing else."""

import base64
import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retort.errors import MissingRequirementError
from retort.evaluation.bootstrap import MOST_CERTAIN
from retort.evaluation.metrics import ABSENT

_STYLE = ("report.css",)


def write_page(
    path: Path,
    template: str,
    title: str,
    view: Mapping[str, Any],
    *,
    styles: Sequence[str] = _STYLE,
    script: str | None = None,
) -> Path:
    """Render a template of this package to ``path``, whole or not at all; its folder is made if it does not exist.

    Args:
        path: the file to write.
        template: name of a file beside this one, as are ``styles`` and ``script``.
        title: of the page.
        view: what the template shows; it is text wherever it stands.
        styles: of the page, in order. The template's policy may name them by ``style_hash``.
        script: of the page, if it has one; the policy may name it by ``script_hash``.

    Raises:
        MissingRequirementError: ``jinja2`` is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingRequirementError("jinja2 is not installed; pip install 'jinja2>=3.1'") from error
    style = "".join(_text(name) for name in styles)
    code = "" if script is None else _text(script)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "number": _number, "chance": _chance}
    page = environment.from_string(_text(template)).render(
        title=title, style=style, style_hash=_hash(style), script=code, script_hash=_hash(code), **view
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _text(name: str) -> str:
    return importlib.resources.files("retort.evaluation").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a policy allows as the only style or script: the page's own."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _percent(value: float | None, digits: int = 1) -> str:
    return ABSENT if value is None else f"{100.0 * value:.{digits}f}"


def _number(value: float | None, digits: int = 2) -> str:
    return ABSENT if value is None else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _chance(value: float) -> str:
    """A share of resamples in percent; certainty is more than resampling can show."""
    if value > MOST_CERTAIN:
        return f"> {100.0 * MOST_CERTAIN:.1f}"
    return f"< {100.0 * (1.0 - MOST_CERTAIN):.1f}" if value < 1.0 - MOST_CERTAIN else f"{100.0 * value:.1f}"
