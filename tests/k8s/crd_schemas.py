"""Custom resources as an API server validates them: defaults, structure (unknown fields refused), rules in CEL."""

import copy
import gzip
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from cel_expr_python import cel

FILE = Path(__file__).parent / "crds" / "schemas.json.gz"
_ENVIRONMENT = cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN})


@cache
def schemas() -> dict[str, Any]:
    """By ``group/version/Kind``: ``scope``, ``subresources``, ``schema``."""
    return json.loads(gzip.decompress(FILE.read_bytes()))  # type: ignore[no-any-return]


def key_of(manifest: dict[str, Any]) -> str:
    return f"{manifest['apiVersion']}/{manifest['kind']}"


def faults(manifest: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    """What an API server would refuse in a custom resource; with ``old``, as a change of that one."""
    schema = schemas()[key_of(manifest)]["schema"]
    value = with_defaults(schema, manifest)
    before = None if old is None else with_defaults(schema, old)
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in _validator(key_of(manifest)).iter_errors(value)
    ]
    return [*found, *_twice(schema, value, ""), *_cel_faults(schema, value, before, "")]


@cache
def _validator(key: str) -> jsonschema.Draft202012Validator:
    schema = _strict(schemas()[key]["schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _strict(node: dict[str, Any]) -> dict[str, Any]:
    """A structural schema as a JSON schema that refuses unknown fields."""
    result = {
        key: value for key, value in node.items() if not key.startswith("x-") and key not in ("format", "default")
    }
    if node.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if node.get("nullable"):
        result["type"] = [node["type"], "null"]
        result.pop("nullable")
    if "properties" in node:
        result["properties"] = {key: _strict(value) for key, value in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    elif isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _strict(node["additionalProperties"])
    if "items" in node:
        result["items"] = _strict(node["items"])
    return result


def with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """A copy with the schema's defaults, which an API server fills in before it validates."""
    if isinstance(value, dict):
        result = {key: with_defaults(_child(schema, key), item) for key, item in value.items()}
        for key, node in schema.get("properties", {}).items():
            if key not in result and "default" in node:
                result[key] = with_defaults(node, copy.deepcopy(node["default"]))
        return result
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), item) for item in value]
    return value


def _child(schema: dict[str, Any], key: str) -> dict[str, Any]:
    if key in schema.get("properties", {}):
        return schema["properties"][key]  # type: ignore[no-any-return]
    rest = schema.get("additionalProperties")
    return rest if isinstance(rest, dict) else {}


def _children(schema: dict[str, Any], value: Any) -> Iterator[tuple[str, dict[str, Any], Any]]:
    if isinstance(value, dict):
        yield from ((f".{key}", _child(schema, key), item) for key, item in value.items())
    elif isinstance(value, list):
        yield from ((f"[{index}]", schema.get("items", {}), item) for index, item in enumerate(value))


def _twice(schema: dict[str, Any], value: Any, place: str) -> Iterator[str]:
    """Items of a list whose keys another item has."""
    keys = schema.get("x-kubernetes-list-map-keys", [])
    if schema.get("x-kubernetes-list-type") == "map" and isinstance(value, list):
        seen = [tuple(item.get(key) for key in keys) for item in value if isinstance(item, dict)]
        yield from (
            f"{place}: {item} is there twice" for item in sorted({i for i in seen if seen.count(i) > 1}, key=str)
        )
    for name, node, item in _children(schema, value):
        yield from _twice(node, item, place + name)


def _cel_faults(schema: dict[str, Any], value: Any, old: Any, place: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"] and old is None:
            continue  # a rule of changes
        result = _ENVIRONMENT.compile(rule["rule"]).eval(data={"self": value, "oldSelf": old})
        if result.value() is not True:
            yield f"{place}: {rule.get('message', rule['rule'])}"
    for name, node, item in _children(schema, value):
        # Items of a list have no earlier self here: none of the rules of changes is inside a list.
        before = old.get(name[1:]) if isinstance(old, dict) and name.startswith(".") else None
        yield from _cel_faults(node, item, before, place + name)


def cel_rules(schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, str, str]]:
    """Every rule: the path of the schema that has it, the rule, and what is told."""
    rules = schema.get("x-kubernetes-validations", [])
    yield from ((place, rule["rule"], rule.get("message", rule["rule"])) for rule in rules)
    for key, node in schema.get("properties", {}).items():
        yield from cel_rules(node, f"{place}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from cel_rules(schema[key], f"{place}[]")


def _bare(node: Any) -> Any:
    """Without the descriptions, which are nine tenths of a definition."""
    if isinstance(node, dict):
        items = ((key, value) for key, value in node.items() if not (key == "description" and isinstance(value, str)))
        return {key: _bare(value) for key, value in items}
    return [_bare(item) for item in node] if isinstance(node, list) else node


def pack(folder: Path) -> bytes:
    """The content of :data:`FILE` from a folder of CustomResourceDefinitions."""
    packed = {}
    for file in sorted(folder.glob("*.yaml")):
        spec = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["spec"]
        stored = next(version for version in spec["versions"] if version["storage"])
        packed[f"{spec['group']}/{stored['name']}/{spec['names']['kind']}"] = {
            "scope": spec["scope"],
            "subresources": sorted(stored.get("subresources", {})),
            "schema": _bare(stored["schema"]["openAPIV3Schema"]),
        }
    return gzip.compress(json.dumps(packed, sort_keys=True, separators=(",", ":")).encode(), 9, mtime=0)


if __name__ == "__main__":
    FILE.write_bytes(pack(Path(sys.argv[1])))
