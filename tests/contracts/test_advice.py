"""A message that advises a key advises one that is there: of the run file that it speaks of, or of its own corpus."""

import ast
import importlib
import pkgutil
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import retort
from retort.config import Config

PACKAGE = Path(retort.__file__).parent
# A dotted key, such as splits.by; file names, places in other files and Python's own names are none.
_DOTTED = re.compile(r"(?<![\w./-])([a-z][a-z_0-9]+(?:\.[a-z][a-z_0-9]*)+)(?![\w/(*\x00])")
_NOT_KEYS = re.compile(
    r"\.(?:py|ya?ml|jsonl?|csv|tsv|md|html|wav|flac|txt|npz?|safetensors|parquet|sh|sum|so|in|out|pcm|mp3|org|com)$"
)
_BACKTICKED = re.compile(r"`([a-z][a-z_]*)`")
_BARE = re.compile(
    r"\b(?:set|raise|lower|reduce|change|correct|check|say|list|shorten) "  # and after it, a key, such as pool_size
    r"(?:([a-z]+(?:_[a-z0-9]+)+)\b(?![\w.(/*\x00])|(?!it )([a-z]+) to [a-z]+_)"
)
_SET_TRUE = re.compile(r"\b([a-z]+(?:_[a-z]+)+): true")
_READERS = sorted(path.stem for path in (PACKAGE / "data").glob("readers_*.py"))


def _configs() -> list[type[Config]]:
    for module in pkgutil.walk_packages([str(PACKAGE)], "retort."):
        if ".run_config" in module.name or ".serving.settings" in module.name or ".data.readers" in module.name:
            importlib.import_module(module.name)
    found, todo = [], [Config]
    while todo:
        below = todo.pop().__subclasses__()
        found += below
        todo += below
    return found


def _below(annotation: object) -> Iterator[type[Config]]:
    """The configurations that a field may hold, in whatever union or list they stand."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _below(argument)


def _has(config: type[Config], parts: list[str]) -> bool:
    field = config.model_fields.get(parts[0])
    if field is None:
        return False
    below = list(_below(field.annotation))
    is_mapping = "dict[" in str(field.annotation) or "Mapping[" in str(field.annotation)
    return len(parts) == 1 or (is_mapping and not below) or any(_has(each, parts[1:]) for each in below)


def _messages(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module with their lines, but for its docstrings; values in f-strings are blanks."""
    tree = ast.parse(path.read_text())
    passed_over = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    passed_over |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed_over:
            yield node.lineno, node.value


def _sentences(path: Path) -> Iterator[tuple[int, str]]:
    # A message is a sentence or a clause of one; names of modules, formats and metrics are single words.
    yield from ((line, text) for line, text in _messages(path) if " " in text.strip())


def advised_but_absent(text: str, configs: list[type[Config]]) -> list[str]:
    """The dotted keys in a text whose first part is a key somewhere, and which are nowhere as a whole."""
    tops = {name for config in configs for name in config.model_fields}
    keys = [key for key in _DOTTED.findall(text) if not _NOT_KEYS.search(key)]
    return [
        key for key in keys if key.split(".")[0] in tops and not any(_has(config, key.split(".")) for config in configs)
    ]


def test_every_dotted_key_in_a_message_is_a_key() -> None:
    configs = _configs()
    assert len(configs) > 50
    seen, absent = 0, []
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, text in _sentences(path):
            seen += len(_DOTTED.findall(text))
            absent += [f"{path.relative_to(PACKAGE)}:{line}: {key}" for key in advised_but_absent(text, configs)]
    assert seen > 30
    assert not absent


def bare_but_absent(text: str, configs: list[type[Config]]) -> list[str]:
    """The undotted keys that a text says to set, raise or look at, and which no configuration has."""
    names = {name for config in configs for name in config.model_fields}
    return [key for found in _BARE.findall(text) for key in found if key and key not in names]


def test_every_key_that_a_message_says_to_set_is_a_key() -> None:
    configs = _configs()
    seen, absent = 0, []
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, text in _sentences(path):
            seen += len(_BARE.findall(text))
            absent += [f"{path.relative_to(PACKAGE)}:{line}: {key}" for key in bare_but_absent(text, configs)]
    assert seen > 10
    assert not absent


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("more than max_reject_fraction allows; raise max_reject_fraction", []),
        ("raise max_rejects_fraction", ["max_rejects_fraction"]),
        ("the service does not know this request; set checksum to when_required", ["checksum"]),
        ("check endpoint_url, the network and that the service runs", ["endpoint_url"]),
        ("set it to some_value in the file", []),
    ],
)
def test_a_bare_key_that_is_none_is_found(text: str, absent: list[str]) -> None:
    assert bare_but_absent(text, _configs()) == absent


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("set splits.by to text", []),
        ("set splits.bye to text", ["splits.bye"]),
        ("raise max_reject_fraction or set corpus.languages", ["corpus.languages"]),
        ("see rejects.jsonl", []),
        ("set text.alphabet or text.voice", []),
    ],
)
def test_a_key_that_is_none_is_found(text: str, absent: list[str]) -> None:
    assert advised_but_absent(text, _configs()) == absent


@pytest.mark.parametrize("name", _READERS)
def test_the_keys_that_a_reader_advises_are_of_its_own_configuration(name: str) -> None:
    module = importlib.import_module(f"retort.data.{name}")
    own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Config)]
    (config,) = [value for value in own if value.__module__ == module.__name__]
    texts = [text for _, text in _sentences(PACKAGE / "data" / f"{name}.py")]
    advised = {key for text in texts for key in (*_BACKTICKED.findall(text), *_SET_TRUE.findall(text))}
    assert advised - set(config.model_fields) == set()


def test_what_readers_share_advises_no_key_but_path() -> None:
    """A message in shared code is read by users of every kind, so that it must hold for all of them."""
    for name in ("rows.py", "second_look.py", "utterance.py"):
        for _, text in _sentences(PACKAGE / "data" / name):
            assert set(_BACKTICKED.findall(text)) <= {"path"}
            assert "allow_outside_root" not in text
