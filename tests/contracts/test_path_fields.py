"""Every path of every run file: a url is either understood or refused, and never becomes a local folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from retort.config import Config, faults_of
from retort.errors import StorageError
from retort.location import Location, RemotePath, as_url, local_only, parse_location
from retort.run_config import AnyConfig, RunConfig
from retort.serving.settings import ServeConfig
from retort.store.commit import commit_folder, write_bytes_atomic
from retort.store.lock import OutputLock

OTHERS = ("gs://bucket/x", "https://host/x", "file:///x", "s3:/b", "s3://", "s3://bucket/../x", "s3://b/c#d")


@dataclass(frozen=True)
class PathField:
    """A path somewhere in a configuration: the smallest tree that leads to it, with ``None`` where its value goes."""

    place: tuple[str | int, ...]
    tree: Any
    is_local: bool

    def tree_with(self, value: Any) -> Any:
        return _filled(self.tree, value)


def _filled(node: Any, value: Any) -> Any:
    if isinstance(node, dict):
        return {key: _filled(below, value) for key, below in node.items()}
    if isinstance(node, list):
        return [_filled(below, value) for below in node]
    return value if node is None else node


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def path_fields(kind: Any) -> Iterator[PathField]:
    """Every field below a configuration type that can hold a path, found in the types themselves."""
    for model in dict.fromkeys(p for p in _parts(kind) if isinstance(p, type) and issubclass(p, Config)):
        tags = {
            name: get_args(field.annotation)[0]
            for name, field in model.model_fields.items()
            if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        }
        for name, field in model.model_fields.items():
            parts = list(_parts(field.annotation))
            is_many = any(get_origin(part) is tuple and Ellipsis in get_args(part) for part in parts)
            is_map = any(get_origin(part) is dict for part in parts)

            def below(place: tuple[Any, ...], tree: Any, name: str = name, tags: dict[str, Any] = tags) -> Any:
                return (name, *place), {**tags, name: tree}

            if Path in parts:
                many = any(get_origin(part) is tuple and Path in list(_parts(part)) for part in parts)
                place, tree = below((0,) if many else (), [None] if many else None)
                yield PathField(place, tree, local_only(field.annotation, field.metadata))
            inner = [p for p in parts if isinstance(p, type) and issubclass(p, Config)]
            for found in path_fields(tuple[tuple(inner)]) if inner else ():  # type: ignore[misc]
                if is_many:
                    yield PathField(*below((0, *found.place), [found.tree]), found.is_local)
                elif is_map:
                    yield PathField(*below(("x", *found.place), {"x": found.tree}), found.is_local)
                else:
                    yield PathField(*below(found.place, found.tree), found.is_local)


def _cases() -> Iterator[Any]:
    for root, kind in ((AnyConfig, RunConfig), (ServeConfig, ServeConfig)):
        for field in path_fields(root):
            job = field.tree["job"]
            tags = ".".join(str(v) for k, v in _tags(field.tree) if k != "job")
            yield pytest.param(field, kind, id=f"{job}-{'.'.join(map(str, field.place))}-{tags}")


def _tags(tree: Any) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if isinstance(value, str):
            yield str(key), value
        else:
            yield from _tags(value)


CASES = list(_cases())


def _faults_at(field: PathField, kind: Any, url: str) -> list[str]:
    found = faults_of(field.tree_with(url), kind)
    # What a person reads names the list or its item.
    dotted = ".".join(map(str, field.place)).removesuffix(".0")
    told = {url, as_url(Path(url))}
    return [
        text
        for _, text in found
        if text.startswith((f"{dotted}: ", f"{dotted}.0: ")) and any(part in text for part in told)
    ]


def test_the_table_is_whole() -> None:
    """Jobs and fields that it must have found, so that a walk that finds nothing is no pass."""
    jobs = {case.values[0].tree["job"] for case in CASES}
    assert jobs >= {"prepare", "pretrain", "import", "generate", "prune", "distill", "tune", "evaluate", "report"}
    assert jobs >= {"export", "demo", "serve"}
    ends = {(case.values[0].tree["job"], case.values[0].place[-1]) for case in CASES}
    for job in jobs - {"serve"}:
        assert (job, "output") in ends
    assert {("report", 0), ("serve", "api_keys"), ("distill", "layers"), ("import", "checkpoint")} <= ends
    assert len(CASES) > 100


@pytest.mark.parametrize(("field", "kind"), CASES)
def test_no_path_takes_another_kind_of_url(
    field: PathField, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in OTHERS:
        faults = _faults_at(field, kind, url)
        assert faults, f"{url} was taken"
        assert any("local path" in text or "s3://bucket/key" in text or "the key has" in text for text in faults)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("field", "kind"), CASES)
def test_a_store_is_refused_where_only_a_local_path_works_and_kept_as_it_is_elsewhere(
    field: PathField, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    faults = _faults_at(field, kind, "s3://bucket/runs/x")
    assert bool(faults) is field.is_local
    assert all("must be a local path" in text for text in faults)
    assert list(tmp_path.iterdir()) == []


def test_a_url_that_became_a_path_on_the_way_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("s3://bucket/p"), Path("s3://bucket/p").absolute(), Path(parse_location("s3://bucket/p"))):
        for write in (
            lambda path=path: write_bytes_atomic(path / "a.json", b""),
            lambda path=path: commit_folder(path).__enter__(),
            lambda path=path: OutputLock(path).__enter__(),
        ):
            with pytest.raises(StorageError, match=r"s3://bucket/p.*would become a local folder"):
                write()
    assert list(tmp_path.iterdir()) == []


class _Job(Config):
    output: Location
    more: tuple[Location, ...] = ()


def test_a_place_in_a_store_goes_through_a_configuration_unchanged() -> None:
    job = _Job.model_validate_json('{"output": "s3://bucket/runs/x/", "more": ["a/b", "s3://bucket/y"]}')
    assert [str(path) for path in (job.output, *job.more)] == ["s3://bucket/runs/x", "a/b", "s3://bucket/y"]
    assert isinstance(job.output, RemotePath)
    assert not isinstance(job.more[0], RemotePath)
    assert _Job.model_validate_json(job.model_dump_json()) == job == job.replace(output=job.output)
    assert job.model_dump(mode="json")["output"] == "s3://bucket/runs/x"


def test_a_place_in_a_store_is_a_path_that_no_file_operation_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = _Job.model_validate_json('{"output": "s3://bucket/runs/x"}').output
    assert str(place / "result" / "a.json") == "s3://bucket/runs/x/result/a.json"
    assert str((place / "result").parent.with_name("y").absolute().resolve()) == "s3://bucket/runs/y"
    assert str((place / "a" / "b").relative_to(place)) == "a/b"
    assert (place.bucket, place.key) == ("bucket", "runs/x")  # type: ignore[attr-defined]
    for use in (
        lambda: place.exists(),
        lambda: place.is_dir(),
        lambda: place.mkdir(parents=True),
        lambda: place.write_text("x"),
        lambda: place.open(),
        lambda: list(place.iterdir()),
        lambda: list(place.glob("*")),
        lambda: place.rename("other"),
    ):
        with pytest.raises(StorageError, match=r"s3://bucket/runs/x: lies in a store"):
            use()
    assert list(tmp_path.iterdir()) == []
