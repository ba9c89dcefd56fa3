"""The C engine on nodes that share nothing: whatever home, compiler and processor a node has."""

import _ctypes
import ctypes
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.inference.native import build

HAS_COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    build.load_library.cache_clear()
    yield
    build.load_library.cache_clear()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instruction sets of the builds that ran: a stand-in for the minutes of the compiler, not for its result."""
    builds: list[str] = []

    def compiled(compiler: str, sources: object, folder: Path, *, march: str) -> Path:
        del compiler, sources
        builds.append(march)
        library = folder / "forward.so"
        library.write_bytes(LIBRARY.read_bytes())
        return library

    monkeypatch.setattr(build, "_compile", compiled)
    return builds


LIBRARY = Path(_ctypes.__file__)  # any library that loads


def test_the_cache_is_where_the_node_says(built: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for named, folder in (
        (str(tmp_path / "cache"), tmp_path / "cache" / "retort"),
        ("relative", tmp_path / "home" / ".cache" / "retort"),
        ("", tmp_path / "home" / ".cache" / "retort"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert build.cache_folder() == folder
        build.load_library.cache_clear()
        build.load_library()
        assert [path.suffix for path in folder.iterdir()] == [".so"]
    assert built == ["native", "native"], "what is there is not built again"
    # What a node with a compiler left there serves one without.
    monkeypatch.setenv("PATH", str(tmp_path))
    build.load_library.cache_clear()
    assert build.load_library() is not None


def test_a_home_that_cannot_be_written_is_said_and_does_no_harm(
    built: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")  # root may write into any folder, but nobody into a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    build.load_library()
    assert built == ["native"]
    assert "retort: Not a directory; the C engine is built anew in each process" in caplog.text


def test_a_user_without_a_home_is_served(
    built: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert build.cache_folder() is None
    build.load_library()
    assert built == ["native"]
    assert "no home folder" in caplog.text


def test_an_image_without_a_compiler_brings_the_library_of_the_best_set_that_the_processor_has(
    built: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "share"
    paths = build.build_for(["x86-64-v2", "x86-64-v3", "armv8-a"], folder)
    assert built == ["x86-64-v2", "x86-64-v3", "armv8-a"]
    small = build.INSTRUCTION_SETS["x86-64-v2"]
    large = small | build.INSTRUCTION_SETS["x86-64-v3"] | build.INSTRUCTION_SETS["x86-64-v4"]
    assert build.brought_library(small, folder) == paths[0]
    assert build.brought_library(large, folder) == paths[1], "of the fourth none was brought"
    assert build.brought_library(frozenset({"fp", "asimd"}), folder) == paths[2]
    assert build.brought_library(frozenset({"fpu"}), folder) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "built_folder", lambda: folder)
    monkeypatch.setattr(build, "_flags", lambda: small)
    build.load_library()
    assert f"with the image's {paths[0]}" in caplog.text
    monkeypatch.setattr(build, "_flags", lambda: frozenset({"fpu"}))
    build.load_library.cache_clear()
    with pytest.raises(build.NoCompilerError, match="no C compiler"):
        build.load_library()


def test_libraries_of_other_sources_are_not_taken(built: list[str], tmp_path: Path) -> None:
    del built
    (path,) = build.build_for(["x86-64-v2"], tmp_path)
    path.rename(path.with_name("forward-x86-64-v2-0123456789abcdef01234567.so"))
    assert build.brought_library(build.INSTRUCTION_SETS["x86-64-v2"], tmp_path) is None


@HAS_COMPILER
@pytest.mark.slow
def test_a_stated_instruction_set_really_compiles_and_loads(tmp_path: Path) -> None:
    fitting = [name for name, needed in build.INSTRUCTION_SETS.items() if needed <= build._flags()]
    assert fitting, "this processor has none of the sets"
    (path,) = build.build_for(fitting[-1:], tmp_path)
    assert build.brought_library(build._flags(), tmp_path) == path
    assert ctypes.CDLL(str(path)).retort_new
    with pytest.raises(build.NoCompilerError, match="pentium9 is none of x86-64-v4"):
        build.build_for(["pentium9"], tmp_path)


def test_a_broken_compiler_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.NoCompilerError, match=r"ended with 3:\nno such flag"):
        build.load_library()
