"""Strict, frozen configuration and the YAML loader.

One run is one complete YAML file that holds values only. Unknown keys, duplicate keys and wrong types are errors that
name the key, its line and the nearest valid name. ``--set a.b=value`` edits the tree, then the whole tree is validated
again.
"""

import difflib
import json
import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from retort.errors import ConfigError

T = TypeVar("T")


class Config(BaseModel):
    """Base of every configuration object: frozen, strict, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, protected_namespaces=())

    def replace(self, **changes: object) -> Self:
        """Return a copy with ``changes``, validated as a whole (``model_copy(update=...)`` would not validate)."""
        tree = self.model_dump(mode="json")
        tree.update({k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in changes.items()})
        return type(self).model_validate_json(json.dumps(tree, default=str))


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads ``1e-4`` as a number, which YAML 1.1 does not."""


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {key!r} appears twice; remove one of them")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def load_tree(path: Path) -> dict[str, Any]:
    """Read a YAML file into a plain tree.

    Raises:
        ConfigError: the file is missing, is not YAML, holds a duplicate key, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; the run files that come with Retort are in jobs/configs") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        tree = yaml.load(text, Loader=_StrictLoader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a run file is a mapping of keys to values, this one is a {type(tree).__name__}")
    return tree


def apply_overrides(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``tree`` with ``a.b=value`` overrides applied; values are read as YAML, ``a.0.b`` indexes lists.

    Raises:
        ConfigError: an override has no ``=`` or walks through something that is neither a mapping nor a list.
    """
    result = json.loads(json.dumps(tree, default=str))
    for override in overrides:
        path, sep, raw = override.partition("=")
        if not sep or not path:
            raise ConfigError(f"--set {override}: expected a.b=value")
        node: Any = result
        *parents, last = path.split(".")
        for part in parents:
            node = _child(node, part, override)
        try:
            value = yaml.load(raw, Loader=_StrictLoader)
        except yaml.YAMLError:
            value = raw
        if isinstance(node, list):
            node[_index(node, last, override)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise ConfigError(f"--set {override}: {'.'.join(parents)} is not a mapping")
    return result  # type: ignore[no-any-return]


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if isinstance(node, dict):
        if not isinstance(node.get(part), dict | list):
            node[part] = {}
        return node[part]
    raise ConfigError(f"--set {override}: {part!r} is not inside a mapping")


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"--set {override}: {part!r} is not an index below {len(node)}")
    return int(part)


def validate(tree: dict[str, Any], kind: type[T], *, where: str) -> T:
    """Validate a tree against a configuration type (a class or a union).

    Raises:
        ConfigError: one line per fault, each with the dotted key and, for an unknown key, the nearest valid name.
    """
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        # JSON mode is strict about scalars yet turns lists into tuples and strings into paths, as YAML needs.
        return adapter.validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        names = _known_names(adapter.json_schema())
        lines = [_explain(fault, names) for fault in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def load_config(path: Path, kind: type[T], *, overrides: Sequence[str] = ()) -> T:
    """Load, override and validate one run file; see :func:`load_tree` and :func:`validate` for the errors."""
    return validate(apply_overrides(load_tree(path), overrides), kind, where=str(path))


def _known_names(schema: dict[str, Any]) -> list[str]:
    names: set[str] = set()
    stack: list[Any] = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            names.update(node.get("properties", {}))
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return sorted(names)


def _explain(fault: Any, names: Sequence[str]) -> str:
    location = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        unknown = str(fault["loc"][-1])
        near = difflib.get_close_matches(unknown, names, n=1, cutoff=0.5)
        cure = f"did you mean {near[0]!r}?" if near else "remove it"
        return f"{location}: unknown key {unknown!r}; {cure}"
    if fault["type"] == "missing":
        return f"{location}: required key is missing"
    return f"{location}: {fault['msg']} (got {fault['input']!r})"
