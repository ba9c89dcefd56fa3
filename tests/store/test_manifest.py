import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import StorageError
from retort.store.manifest import Manifest, ManifestEntry, build_manifest, parse_manifest, safe_key, sha256_file
from tests.store.conftest import CONTENT, fill

_PART = st.text(st.characters(codec="utf-8", exclude_characters="\\/\x7f", min_codepoint=32), min_size=1, max_size=8)
_PATHS = st.lists(
    st.lists(_PART.filter(lambda p: p not in (".", "..")), min_size=1, max_size=3).map("/".join), unique=True
)


@given(_PATHS.filter(lambda paths: not {"MANIFEST.sha256", "COMMITTED"} & set(paths)), st.integers(0, 2**50))
def test_text_form_round_trips(paths: list[str], size: int) -> None:
    entries = (ManifestEntry(path, size, hashlib.sha256(path.encode()).hexdigest()) for path in sorted(paths))
    manifest = Manifest(tuple(entries))
    assert parse_manifest(manifest.to_bytes(), where="here") == manifest


def test_manifest_describes_the_files_and_sha256sum_agrees(tmp_path: Path) -> None:
    fill(tmp_path)
    manifest = build_manifest(tmp_path)
    assert {e.path: (e.size, e.sha256) for e in manifest.entries} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items()
    }
    assert manifest.total_bytes == sum(map(len, CONTENT.values()))
    (tmp_path / "MANIFEST.sha256").write_bytes(manifest.to_bytes())
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "MANIFEST.sha256"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == len(CONTENT)


def test_sha256_file_of_more_than_one_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "a/./b",
        "a/",
        "..",
        "a\\..\\b",
        "a\nb",
        "a\x00b",
        "\ud800",
        "x" * 1025,
    ],
)
def test_unsafe_keys_are_refused(key: str) -> None:
    with pytest.raises(StorageError, match="unsafe key"):
        safe_key(key)


@pytest.mark.parametrize("key", ["a", "models/student@2027-01-12/step-00001000", "..a/b..", "größe"])
def test_ordinary_keys_pass(key: str) -> None:
    assert safe_key(key) == key


def _text(*entries: tuple[str, int]) -> bytes:
    return Manifest(tuple(ManifestEntry(path, size, "0" * 64) for path, size in entries)).to_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "version"),
        (b"\xff\xfe", "UTF-8"),
        (b"# retort manifest 2\n", "version"),
        (_text(("../../evil", 1)), "unsafe key"),
        (_text(("/etc/evil", 1)), "unsafe key"),
        (_text(("COMMITTED", 1)), "reserved"),
        (_text(("b", 1), ("a", 1)), "sorted"),
        (_text(("a", 1), ("a", 1)), "sorted"),
        (_text(("a", 1)).replace(b"# size 1", b"# size -1"), "damaged"),
        (_text(("a", 1)).replace(b"0" * 64, b"0" * 63), "damaged"),
        (_text(("a", 1), ("b", 1)).rsplit(b"\n", 2)[0], "version"),
    ],
)
def test_broken_or_hostile_manifests_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        parse_manifest(content, where="here")


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(StorageError, match="link: neither a plain file"):
        build_manifest(tmp_path)
