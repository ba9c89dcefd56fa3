"""What is wrong with a configuration, in words: where it is, what is valid at that place, what to write instead.

Pydantic locates a fault by the path through its own schema, which also holds the tags of unions. Here the path is
walked again, so that what a person reads is the path in the file, and the names that are suggested are those that
this very place allows.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Place = tuple[str | int, ...]
UNKNOWN_BRANCH = "unknown_branch"
"""Type of the fault of a union that a function tells apart; its message says all."""
_LONGEST_VALUE = 80


class Schema:
    """A JSON schema that pydantic made, walked by the locations of its faults."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self._definitions: Mapping[str, Any] = root.get("$defs", {})

    def resolve(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """Follow a reference, and the one branch of an optional value that is not null."""
        while True:
            if "$ref" in node:
                node = self._definitions[str(node["$ref"]).rsplit("/", 1)[-1]]
            elif len(branches := self._branches(node)) == 1:
                node = branches[0]
            else:
                return node

    def _branches(self, node: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        either = node.get("anyOf", node.get("oneOf", ())) if "discriminator" not in node else ()
        return [branch for branch in either if branch.get("type") != "null"]

    def tags(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """Tag to reference, or to a union of its own, of a union told apart by a key."""
        mapping: Mapping[str, Any] = self.resolve(node).get("discriminator", {}).get("mapping", {})
        return mapping

    def names(self, node: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """The keys that a mapping may hold, with their schemas."""
        names: Mapping[str, Mapping[str, Any]] = self.resolve(node).get("properties", {})
        return names

    def walk(self, location: Sequence[str | int]) -> tuple[Place, Mapping[str, Any]]:
        """The place in the file, and the schema there, of a location as pydantic gives it."""
        place: list[str | int] = []
        node = self.resolve(self.root)
        for part in location:
            if isinstance(part, str) and part in self.tags(node):
                node = self._tagged(self.tags(node)[part])
                continue
            branch = self._named(node, part)
            if branch is not None:
                node = branch
                continue
            below = self._below(node, part)
            if below is None:
                continue  # the name of a union's branch, or of a validator: it is not in the file
            place.append(part)
            node = self.resolve(below)
        return tuple(place), node

    def _tagged(self, target: Any) -> Mapping[str, Any]:
        return self.resolve(target if isinstance(target, Mapping) else {"$ref": target})

    def _named(self, node: Mapping[str, Any], part: str | int) -> Mapping[str, Any] | None:
        """The branch of a union without tags that one of its keys, which may be left out, gives this name."""
        for branch in map(self.resolve, self._branches(node)):
            if any(below.get("const") == part for below in branch.get("properties", {}).values()):
                return branch
        return None

    def _below(self, node: Mapping[str, Any], part: str | int) -> Mapping[str, Any] | None:
        candidates = [node, *(self.resolve(branch) for branch in self._branches(node))]
        for candidate in candidates:
            found = self._child(candidate, part)
            if found is not None:
                return found
        return None

    def _child(self, node: Mapping[str, Any], part: str | int) -> Mapping[str, Any] | None:
        if isinstance(part, int):
            fixed = node.get("prefixItems", ())
            items = fixed[part] if part < len(fixed) else node.get("items")
            return items if isinstance(items, Mapping) else {} if node.get("type") == "array" else None
        known = node.get("properties", {}).get(part)
        extra = node.get("additionalProperties")
        found: Mapping[str, Any] | None = known if known is not None else extra if isinstance(extra, Mapping) else None
        return found

    def places_of(self, name: str, node: Mapping[str, Any], *, depth: int = 4) -> Iterator[str]:
        """Dotted paths below ``node`` at which ``name`` is a valid key."""
        if depth == 0:
            return
        for key, below in self.names(node).items():
            if key == name:
                yield key
            for reference in self.tags(below).values():
                yield from (f"{key}.{rest}" for rest in self.places_of(name, self._tagged(reference), depth=depth - 1))
            yield from (f"{key}.{rest}" for rest in self.places_of(name, below, depth=depth - 1))


def describe(fault: Any, schema: Schema) -> tuple[Place, str]:
    """The place of a pydantic fault, and one line that says what is wrong there and what to do.

    Args:
        fault: one entry of ``ValidationError.errors()``.
        schema: of the type that was validated against.
    """
    location: tuple[str | int, ...] = fault["loc"]
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        place, node = schema.walk(location[:-1])
        unknown = str(location[-1])
        return (
            *place,
            unknown,
        ), f"{_dotted((*place, unknown))}: unknown key {unknown!r}; {_cure(unknown, schema, node)}"
    if kind == "missing":
        place, _ = schema.walk(location[:-1])
        return (*place, location[-1]), f"{_dotted((*place, location[-1]))}: required key is missing"
    place, node = schema.walk(location)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = (*place, str(context["discriminator"]).strip("'"))
        allowed = sorted(schema.tags(node))
        if kind == "union_tag_not_found":
            return key, f"{_dotted(key)}: required key is missing; one of {', '.join(allowed)}"
        return key, f"{_dotted(key)}: unknown value {context['tag']!r}; {_nearest(context['tag'], allowed)}"
    return place, f"{_dotted(place)}: {_message(fault)}"


def _message(fault: Any) -> str:
    text, value = str(fault["msg"]), fault["input"]
    if fault["type"] in ("value_error", UNKNOWN_BRANCH):
        return text.removeprefix("Value error, ")
    shown = repr(value)
    shown = shown if len(shown) <= _LONGEST_VALUE else shown[: _LONGEST_VALUE - 1] + "…"
    quotes = "; put it in quotes" if fault["type"] == "string_type" and isinstance(value, int | float) else ""
    return f"{text} (got {shown}){quotes}"


def _cure(unknown: str, schema: Schema, node: Mapping[str, Any]) -> str:
    names = sorted(schema.names(node))
    near = difflib.get_close_matches(unknown, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    elsewhere = sorted(set(schema.places_of(unknown, node)))
    if elsewhere:
        return f"did you mean {' or '.join(repr(path) for path in elsewhere[:2])}?"
    return f"remove it, or use one of {', '.join(names)}" if names else "remove it"


def _nearest(value: Any, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    listed = f"one of {', '.join(allowed)}"
    return f"did you mean {near[0]!r}? It is {listed}" if near else f"it is {listed}"


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place) if place else "(the whole file)"
