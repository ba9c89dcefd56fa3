"""Strict, frozen configuration and the YAML loader.

One run is one complete YAML file that holds values only. Unknown keys, duplicate keys and wrong types are errors that
name the key, its line and the nearest valid name. ``--set a.b=value`` edits the tree, then the whole tree is validated
again.
"""

import functools
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, ValidationInfo, field_validator

from retort.config_faults import Place, Schema, describe
from retort.errors import ConfigError, DataError
from retort.location import as_url, is_url, local_only

T = TypeVar("T")
C = TypeVar("C", bound=BaseModel)
Lines = Mapping[Place, int]


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


class Config(BaseModel):
    """Base of every configuration object: frozen, strict, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, protected_namespaces=())

    def replace(self, **changes: object) -> Self:
        """Return a copy with ``changes``, validated as a whole (``model_copy(update=...)`` would not validate)."""
        tree = self.model_dump(mode="json")
        tree.update(changes)
        return type(self).model_validate_json(json.dumps(tree, default=_plain))

    @field_validator("*", mode="after")
    @classmethod
    def _local_where_only_local_works(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a url where the field is no :data:`retort.location.Location`: as a path it would be a local folder."""
        field = cls.model_fields[str(info.field_name)]
        if local_only(field.annotation, field.metadata):
            for url in _urls_in(value):
                raise ValueError(
                    f"{url} is a url, and this must be a local path; copy it to a folder that all nodes see"
                )
        return value


def _urls_in(value: Any) -> Iterator[str]:
    if isinstance(value, Path) and is_url(str(value)):
        yield as_url(value)
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _urls_in(item)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads ``1e-4`` as a number, which YAML 1.1 does not."""


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue  # `<<: *name`, whose keys may be overridden
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise ConfigError(f"line {line}: the key {key!r} is not text; put it in quotes")
        if key in seen:
            raise ConfigError(f"line {line}: the key {key!r} appears twice, first in line {seen[key]}; remove one")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def load_tree(path: Path) -> dict[str, Any]:
    """Read a YAML file into a plain tree.

    Raises:
        ConfigError: the file is missing, is not YAML, holds a duplicate key, or is not a mapping.
    """
    return _load_with_lines(path)[0]


def _load_with_lines(path: Path) -> tuple[dict[str, Any], Lines]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; the run files that come with Retort are in jobs/configs") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        tree = None if node is None else loader.construct_document(node)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-02-31
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be a run file") from None
    finally:
        loader.dispose()
    if not isinstance(tree, dict):
        kind = "empty" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{path}: a run file is a mapping of keys to values, this one is {kind}")
    return tree, dict(_lines_of(node, ()))


def _lines_of(node: Any, place: Place) -> Iterator[tuple[Place, int]]:
    """The line, counted from 1, of each key and each item below ``node``."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            below = (*place, str(key_node.value))
            yield below, key_node.start_mark.line + 1
            yield from _lines_of(value_node, below)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*place, index), item.start_mark.line + 1
            yield from _lines_of(item, (*place, index))


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
        try:
            value = yaml.load(raw, Loader=_StrictLoader)
        except ConfigError as error:
            raise ConfigError(f"--set {override}: {error}") from None
        except (yaml.YAMLError, ValueError):
            value = raw
        put(result, path, value, said=f"--set {override}")
    return result  # type: ignore[no-any-return]


def put(tree: dict[str, Any], path: str, value: Any, *, said: str) -> None:
    """Set the value at the dotted ``path`` of a tree, in place; ``a.0.b`` indexes lists, missing mappings are made.

    Args:
        tree: what is changed.
        path: where.
        value: what to set.
        said: what a person wrote, for the error.

    Raises:
        ConfigError: the path walks through something that is neither a mapping nor a list.
    """
    node: Any = tree
    *parents, last = path.split(".")
    for part in parents:
        node = _child(node, part, said)
    if isinstance(node, list):
        node[_index(node, last, said)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"{said}: {'.'.join(parents)} is not a mapping")


def _child(node: Any, part: str, said: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, said)]
    if isinstance(node, dict):
        if not isinstance(node.get(part), dict | list):
            node[part] = {}
        return node[part]
    raise ConfigError(f"{said}: {part!r} is not inside a mapping")


def _index(node: list[Any], part: str, said: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"{said}: {part!r} is not an index below {len(node)}")
    return int(part)


def validate(tree: dict[str, Any], kind: type[T], *, where: str) -> T:
    """Validate a tree against a configuration type (a class or a union).

    Raises:
        ConfigError: one line per fault, each with the dotted key and, for an unknown key, the nearest valid name.
    """
    return _validate(tree, kind, lambda _place: where)


def load_config(path: Path, kind: type[T], *, overrides: Sequence[str] = ()) -> T:
    """Load, override and validate one run file; see :func:`load_tree` and :func:`validate` for the errors.

    Each fault is given with its line in the file, or with the ``--set`` that it comes from.
    """
    tree, lines = _load_with_lines(path)
    changed = {tuple(override.partition("=")[0].split(".")): override for override in overrides}

    def where(place: Place) -> str:
        for length in range(len(place), 0, -1):
            override = changed.get(tuple(str(part) for part in place[:length]))
            if override is not None:
                return f"--set {override}"
        if place not in lines:
            deeper = [override for key, override in changed.items() if key[: len(place)] == tuple(map(str, place))]
            if place and deeper:
                return f"--set {deeper[0]}"
        for length in range(len(place), 0, -1):
            if place[:length] in lines:
                return f"{path}:{lines[place[:length]]}"
        return str(path)

    return _validate(apply_overrides(tree, overrides), kind, where)


def faults_of(tree: dict[str, Any], kind: type[T]) -> list[tuple[Place, str]]:
    """What is wrong with a tree, in words and place by place; nothing if it is valid."""
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        adapter.validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        return _described(error, kind)
    return []


def first_fault(error: ValidationError) -> str:
    """The first fault of a file or an object that no person wrote, with its place."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"]))
    told = fault["msg"].removeprefix("Value error, ")
    if fault["type"] not in ("value_error", "missing") and isinstance(fault["input"], int | float | str):
        told += f" (got {fault['input']!r:.60})"
    return f"{place}: {told}" if place else told


def read_record(path: Path, kind: type[C], *, cure: str) -> C:
    """Read back a JSON file that was written here.

    Raises:
        DataError: it is damaged, or of another version; its place and the cure are named.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: damaged, or not of this version: {first_fault(error)}; {cure}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {cure}") from error


def _validate(tree: dict[str, Any], kind: type[T], where: Callable[[Place], str]) -> T:
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        # JSON mode is strict about scalars yet turns lists into tuples and strings into paths, as YAML needs.
        return adapter.validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        faults = _described(error, kind)
        raise ConfigError("\n".join(f"{where(place)}: {text}" for place, text in faults)) from None


def _described(error: ValidationError, kind: Any) -> list[tuple[Place, str]]:
    schema = _schema_of(kind)
    return [describe(fault, schema) for fault in error.errors(include_url=False)]


@functools.lru_cache(maxsize=32)
def _schema_of(kind: Any) -> Schema:
    """Made once for each type: the union of all jobs takes a third of a second."""
    return Schema(TypeAdapter(kind).json_schema())
