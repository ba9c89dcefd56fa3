import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import retort
from retort.errors import DataError, StorageError
from retort.store.artifact import (
    ArtifactInfo,
    code_version,
    describe_artifact,
    git_commit,
    read_artifact,
    write_artifact,
)
from retort.store.commit import commit_folder
from tests.store.conftest import fill


def info(**changes: object) -> ArtifactInfo:
    arguments: dict[str, object] = {
        "inputs": {"teacher": "ab12"},
        "config": {"train": {"steps": 10, "scales": [1.0, 2.5]}},
        "metrics": {"wer_corpus": 0.061, "utmos": None},
    }
    return describe_artifact("model", "digits-student", "2027-01-12", **{**arguments, **changes})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = write_artifact(tmp_path / "a", info(), fill)
    read = read_artifact(tmp_path / "a")
    assert read == written
    assert read.info.reference == "digits-student@2027-01-12"
    assert read.info.config == {"train": {"steps": 10, "scales": [1.0, 2.5]}}
    assert read.info.metrics == {"wer_corpus": 0.061, "utmos": None}
    assert re.fullmatch("[0-9a-f]{64}", read.fingerprint)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    same = info()
    first = write_artifact(tmp_path / "a", same, lambda f: fill(f, {"w": b"1"}))
    again = write_artifact(tmp_path / "b", same, lambda f: fill(f, {"w": b"1"}))
    other = write_artifact(tmp_path / "c", same, lambda f: fill(f, {"w": b"2"}))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_damage_is_found_by_default_and_not_when_told_not_to_look(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", info(), fill)
    (tmp_path / "a" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"model\.safetensors: damaged"):
        read_artifact(tmp_path / "a")
    assert read_artifact(tmp_path / "a", verify=False).info.kind == "model"
    (tmp_path / "a" / "COMMITTED").unlink()
    with pytest.raises(StorageError, match="COMMITTED: missing"):
        read_artifact(tmp_path / "a", verify=False)


def test_existing_artifact_is_kept_unless_replaced(tmp_path: Path) -> None:
    first = write_artifact(tmp_path / "a", info(), fill)
    with pytest.raises(StorageError, match="exists already"):
        write_artifact(tmp_path / "a", info(), fill)
    assert read_artifact(tmp_path / "a") == first
    write_artifact(tmp_path / "a", info(metrics={"wer_corpus": 0.05}), fill, replace=True)
    assert read_artifact(tmp_path / "a").info.metrics == {"wer_corpus": 0.05}


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        read_artifact(tmp_path / "none")
    with commit_folder(tmp_path / "plain") as folder:
        fill(folder)
    with pytest.raises(StorageError, match="not an artifact"):
        read_artifact(tmp_path / "plain")
    with commit_folder(tmp_path / "newer") as folder:
        (folder / "artifact.json").write_text(json.dumps({**info().model_dump(mode="json"), "schema_version": 2}))
    with pytest.raises(StorageError, match="schema_version"):
        read_artifact(tmp_path / "newer")
    with pytest.raises(StorageError, match=r"artifact\.json, which is written here"):
        write_artifact(tmp_path / "b", info(), lambda f: fill(f, {"artifact.json": b"{}"}))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "x" * 200, "a@b"])
def test_names_that_do_not_fit_for_a_folder_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="names are letters"):
        describe_artifact("model", name, "1", inputs={}, config={})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), {1, 2}])
def test_figures_that_are_not_json_are_refused(value: object) -> None:
    with pytest.raises(DataError, match="not JSON data"):
        info(metrics={"wer_corpus": value})


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def versions(path: Path) -> list[str]:
    program = "from retort.store.artifact import code_version, git_commit; print(code_version()); print(git_commit())"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r}); " + program]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=path).stdout.split()


def test_code_version_of_a_checkout_an_edited_one_and_an_installed_copy(tmp_path: Path) -> None:
    package = Path(retort.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, tmp_path / "retort", ignore=ignore)
    (tmp_path / ".gitignore").write_text("__pycache__\n/venv/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert versions(tmp_path) == [f"{retort.__version__}+g{head[:12]}", head]
    (tmp_path / "retort" / "errors.py").open("a").write("\n")
    assert versions(tmp_path)[1] == head + "-dirty"
    # A virtual environment inside a repository is not that repository's code.
    shutil.copytree(package, tmp_path / "venv" / "retort", ignore=ignore)
    assert versions(tmp_path / "venv") == [retort.__version__, "None"]


def test_code_version_of_this_process() -> None:
    commit = git_commit()
    assert code_version().startswith(retort.__version__)
    assert (commit is None) == ("+g" not in code_version())
