import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from retort.errors import ResourceError
from retort.store.commit import commit_folder, verify_folder
from tests.store.conftest import fill, read_tree

OLD = {"weights": b"old", "sub/more": b"old too"}
NEW = {"weights": b"new and longer", "other": b"x"}


def write(target: Path, content: dict[str, bytes], *, replace: bool = False) -> None:
    with commit_folder(target, replace=replace) as folder:
        fill(folder, content)


def payload(target: Path) -> dict[str, bytes]:
    verify_folder(target)
    return {k: v for k, v in read_tree(target).items() if k not in ("COMMITTED", "MANIFEST.sha256")}


def fill_up(folder: Path) -> None:
    fill(folder, {"big.bin": b"x" * 3_000_000})


def save_with_torch(folder: Path) -> None:
    import torch

    torch.save(torch.zeros(750_000), folder / "big.pt")


def save_with_safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(750_000)}, folder / "big.safetensors")


@pytest.mark.parametrize("filler", [fill_up, save_with_torch, save_with_safetensors])
def test_full_disk(tmp_path: Path, small_disk: Callable[[str], Path | None], filler: Callable[[Path], None]) -> None:
    disk = small_disk("size=2m")
    folder = disk or tmp_path
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    write(folder / "out", OLD)
    if disk is None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        message = r"out: needs more than [\d,]+ bytes, the file system has [\d,]+ bytes free"
        with pytest.raises(ResourceError, match=message), commit_folder(folder / "out", replace=True) as temporary:
            filler(temporary)
        assert payload(folder / "out") == OLD
        assert [path.name for path in folder.iterdir() if path.name.startswith("out")] == ["out"]
        write(folder / "out", NEW, replace=True)  # there is room again
        assert payload(folder / "out") == NEW
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_limit_on_file_sizes() -> None:
    # In a process of its own, for the limit must also hold where the disk cannot be mounted small.
    program = """
import resource, sys, tempfile, pathlib
from retort.store.commit import commit_folder, verify_folder, write_bytes_atomic
from retort.errors import ResourceError
root = pathlib.Path(tempfile.mkdtemp())
with commit_folder(root / "out") as folder:
    (folder / "f").write_bytes(b"old")
write_bytes_atomic(root / "small", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
failures = 0
try:
    with commit_folder(root / "out", replace=True) as folder:
        (folder / "f").write_bytes(b"x" * 200_000)
except ResourceError as error:
    failures += "limit on file sizes" in str(error) and "100,000 bytes" in str(error)
try:
    write_bytes_atomic(root / "small", b"x" * 200_000)
except ResourceError as error:
    failures += "needs 200,000 bytes" in str(error)
verify_folder(root / "out")
assert (root / "out" / "f").read_bytes() == (root / "small").read_bytes() == b"old"
assert sorted(p.name for p in root.iterdir()) == ["out", "small"]
sys.exit(0 if failures == 2 else 1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_inodes_left(tmp_path: Path, small_disk: Callable[[str], Path | None]) -> None:
    folder = small_disk("size=2m,nr_inodes=12")
    if folder is None:  # without the right to mount: the kernel's error, and no word of inodes where some are left
        write(tmp_path / "out", {"a": b"1"})
        with pytest.raises(ResourceError, match="bytes free"), commit_folder(tmp_path / "next"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return
    write(folder / "out", {"a": b"1"})
    with pytest.raises(ResourceError, match="no inodes left"):
        write(folder / "next", {f"f{number}": b"" for number in range(20)})
    assert payload(folder / "out") == {"a": b"1"}


def test_too_little_room_is_refused_before_writing(tmp_path: Path) -> None:
    entered = commit_folder(tmp_path / "out", expected_bytes=10**18)
    with pytest.raises(ResourceError, match="needs 1,000,000,000,000,000,000 bytes"):
        entered.__enter__()
    assert list(tmp_path.iterdir()) == []
