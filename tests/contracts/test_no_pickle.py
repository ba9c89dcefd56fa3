"""Nothing that crosses a run's boundary is unpickled and no archive unpacked: read in the code, and tried."""

import ast
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from retort.audio.codec import open_codec
from retort.audio.files import Audio, AudioRejected, read_audio
from retort.data.mels import MelSet
from retort.data.readers_parquet import ParquetConfig, open_parquet
from retort.data.synthetic import SyntheticSet
from retort.data.tokens import TokenSet
from retort.errors import DataError
from retort.evaluation.results import read_summary, write_summary
from retort.inference.opening import Room, open_speaker
from retort.models.weights import load_codec_lm
from retort.serving.voices import VoiceStore
from retort.store.artifact import read_artifact
from retort.store.checkpoints import CheckpointFolder
from tests.data import test_mels, test_synthetic
from tests.evaluation import test_results
from tests.inference.speaking import speaking_model

PACKAGE = Path(__file__).parents[2] / "platform" / "retort"

ALLOWED = {
    # EnCodec's own file of weights, which only exists as a pickle: read with `weights_only`, as tensors.
    ("audio/encodec_codec.py", "torch.load(weights_only=True)"),
    # The same of Resemblyzer, whose file is compared with its SHA-256 first.
    ("models/zero_shot/timbre.py", "torch.load(weights_only=True)"),
    # The files that 3D-Speaker publishes.
    ("models/zero_shot/eres2net.py", "torch.load(weights_only=True)"),
}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "pandas"}
ARCHIVES = {"tarfile", "zipfile", "webdataset", "py7zr", "rarfile"}
UNSAFE = {"shutil.unpack_archive", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load"}
HARMLESS = {"pickle.UnpicklingError", "zipfile.BadZipFile"}


def dangers_of(text: str) -> Iterator[str]:
    """What a module could unpickle, unpack or execute."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLERS | ARCHIVES:
            yield f"from {node.module}"
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if (name.partition(".")[0] in UNPICKLERS | ARCHIVES or name in UNSAFE) and name not in HARMLESS:
                yield name
        if isinstance(node, ast.Call):
            yield from dangers_of_call(ast.unparse(node.func), {w.arg: ast.unparse(w.value) for w in node.keywords})


def dangers_of_call(name: str, given: dict[str | None, str]) -> Iterator[str]:
    """The same of a call with the keywords ``given``."""
    if name in ("torch.load", "torch.serialization.load"):
        yield f"torch.load(weights_only={given.get('weights_only')})"
    if name.endswith("load_state_dict_from_url") and given.get("weights_only") != "True":
        yield name
    if given.get("allow_pickle") == "True" or given.get("trust_remote_code") == "True":
        yield f"{name} that runs what it reads"
    if name in ("eval", "exec", "compile", "__import__"):
        yield name


def test_no_module_can_unpickle_unpack_or_execute_what_it_reads() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), danger)
        for path in PACKAGE.rglob("*.py")
        for danger in dangers_of(path.read_text())
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(b'')", "from pickle import loads", "import torch\ntorch.load('x')",
        "import tarfile\ntarfile.open('x').extractall()", "import zipfile\nzipfile.ZipFile('x')",
        "import shutil\nshutil.unpack_archive('x')", "np.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)", "exec('x')", "yaml.unsafe_load('x')",
        "torch.hub.load_state_dict_from_url('x')", "import joblib\njoblib.load('x')", "torch.jit.load('x')",
    ],
)  # fmt: skip
def test_what_is_dangerous_is_seen(text: str) -> None:
    assert list(dangers_of(text))


class UnpickledError(BaseException):
    """Not an ``Exception``, which a loader could turn into an error of its own."""


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, whoever unpickles fails the test, in whatever library."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise UnpickledError("something was unpickled")

    class Refuses:
        __init__ = refuse

    for name in ("load", "loads", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, Refuses)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.serialization, "load", refuse)
    monkeypatch.setattr(torch.jit, "load", refuse)


def test_the_hook_catches_unpickling(no_pickle: None, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1)}, file)
    for load in (
        lambda: pickle.loads(b"N."),
        lambda: pickle.load(file.open("rb")),
        lambda: pickle.Unpickler(file.open("rb")),
        lambda: torch.load(file),
    ):
        with pytest.raises(UnpickledError):
            load()


LOADERS = [
    "model", "codec", "tokens", "speaker", "voices", "mels", "synthetic", "checkpoint", "artifact", "evaluation",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], Any]]:
    """What loads each kind of thing, from folders that our own code wrote."""
    root = tmp_path_factory.mktemp("made")
    model = speaking_model(root)
    folder = model / "result" if (model / "result").is_dir() else model
    checkpoints = CheckpointFolder(root / "checkpoints")
    checkpoints.save(3, lambda path: (path / "a.json").write_text("{}") and None, {"x": 1})
    store = VoiceStore(root / "voices", max_voices=3)
    speaker = open_speaker(folder, room=Room(1, 1.0, 64))
    voice = speaker.voice_of(Audio(0.1 * torch.randn(16_000), 16_000))
    added = store.add("somebody", consent="yes", sample_sha256="0", voices=[voice])
    mels = test_mels.write(root / "mels", test_mels.made())
    (root / "synthetic").mkdir()
    synthetic = test_synthetic.write(root / "synthetic")
    write_summary(root / "summary.json", test_results.evaluation(environment={"torch": "2"}))
    return {
        "model": lambda: load_codec_lm(folder),
        "codec": lambda: open_codec(root / "data" / "codec"),
        "tokens": lambda: list(TokenSet.open(root / "data")),
        "speaker": lambda: open_speaker(folder, room=Room(1, 1.0, 64)),
        "voices": lambda: store.voices(added.id),
        "mels": lambda: list(MelSet.open(mels)),
        "synthetic": lambda: SyntheticSet.open(synthetic),
        "checkpoint": lambda: checkpoints.latest_good(),
        "artifact": lambda: read_artifact(folder),
        "evaluation": lambda: read_summary(root / "summary.json"),
    }


@pytest.mark.parametrize("name", LOADERS)
def test_no_loading_path_unpickles(name: str, made: dict[str, Callable[[], Any]], no_pickle: None) -> None:
    assert made[name]()


def test_every_kind_of_thing_is_loaded(made: dict[str, Callable[[], Any]]) -> None:
    assert set(made) == set(LOADERS)


def parquet(where: Path, column: str, values: list[Any]) -> Path:
    pq.write_table(pa.table({"text": ["one"] * len(values), column: values}), where, compression="zstd")
    return where


def test_a_shard_that_links_out_of_its_corpus_is_refused(tmp_path: Path) -> None:
    outside = parquet(tmp_path / "outside.parquet", "path", ["a.wav"])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "part.parquet").symlink_to(outside)
    with pytest.raises(DataError, match=r"leads out of"):
        open_parquet(ParquetConfig(kind="parquet", path=corpus))
    assert list(open_parquet(ParquetConfig(kind="parquet", path=outside)))


def test_a_shard_that_grows_too_much_when_it_is_read_is_refused(tmp_path: Path) -> None:
    bomb = parquet(tmp_path / "bomb.parquet", "audio_bytes", [bytes([n]) * 40_000_000 for n in (1, 2)])
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DataError, match="would take"):
        open_parquet(ParquetConfig(kind="parquet", path=bomb))


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK])
def test_a_recording_that_is_a_device_is_refused(tmp_path: Path, kind: int) -> None:
    os.mknod(tmp_path / "a.wav", kind | 0o600)
    with pytest.raises(AudioRejected, match="not a regular file"):
        read_audio(tmp_path / "a.wav")
