"""Files that would run or write something if anybody unpickled, unpacked, imported or constructed what is in them."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from retort import cli
from retort.audio.encodec_codec import EncodecConfig, load_encodec
from retort.audio.files import AudioRejected, read_audio, wav_bytes
from retort.config import load_config, load_tree, validate
from retort.data.readers import CorpusConfig, read_corpus
from retort.data.utterance import Utterance
from retort.errors import ConfigError, DataError, RetortError
from retort.evaluation.asr import CTCConfig, WhisperConfig, open_recogniser
from retort.evaluation.speaker import TransformersSpeakerConfig, open_speaker_encoder
from retort.models.outside.checkpoint import Checkpoint
from retort.models.weights import load_codec_lm
from retort.orchestration.outside import run_import
from retort.orchestration.progress import QuietProgress
from retort.run_config import ImportConfig, PrepareConfig
from retort.serving.settings import ServeConfig
from tests.evaluation.test_asr import write_ctc
from tests.evaluation.test_speaker import write_wavlm_sv
from tests.orchestration.tiny_runs import RATE, tone

FOLDERS = ("ljspeech", "libritts", "vctk", "fsdd")


class Evil:
    """Whoever unpickles it makes the folder."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sign),)


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """What exists as soon as anything hostile ran; the fixture fails the test if it does."""
    return tmp_path / "it-ran"


def write_tar(path: Path, sign: Path) -> Path:
    """A shard in the layout of WebDataset with one good sample and every unsafe kind of member."""
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, target
            tar.addfile(member, io.BytesIO(content))

        add("a.wav", wav_bytes(tone(0, 0.1), RATE))
        add("a.json", b'{"text": "one"}')
        add("../it-ran", b"outside")
        add(str(sign), b"absolute")
        add("link.wav", kind=tarfile.SYMTYPE, target="/etc/passwd")
        add("hard.wav", kind=tarfile.LNKTYPE, target="../../etc/passwd")
        add("b.pickle", pickle.dumps(Evil(sign)))
        add("b.pyd", b"MZ")
    return path


def write_cut_tar(path: Path, sign: Path) -> Path:
    write_tar(path, sign)
    path.write_bytes(path.read_bytes()[:700])
    return path


def write_zip(path: Path, sign: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../it-ran", "outside")
        archive.writestr("metadata.csv", "a|one|one\n")
    return path


def corpus(kind: str, path: Path) -> Any:
    return validate({"kind": kind, "path": str(path)}, CorpusConfig, where="t")


@pytest.mark.parametrize("write", [write_tar, write_cut_tar, write_zip])
@pytest.mark.parametrize("kind", [*FOLDERS, "manifest", "parquet"])
def test_an_archive_in_the_place_of_a_corpus_is_refused(
    tmp_path: Path, sign: Path, kind: str, write: Callable[[Path, Path], Path]
) -> None:
    (tmp_path / "in").mkdir()
    shard = write(tmp_path / "in" / "shard-000.tar", sign)
    with pytest.raises(DataError, match=r"shard-000\.tar") as error:
        list(read_corpus(corpus(kind, shard)))
    assert error.value.exit_code == 3
    assert not sign.exists()


@pytest.mark.parametrize("kind", [*FOLDERS, "parquet"])
def test_a_folder_of_shards_is_no_corpus_and_nothing_is_unpacked(tmp_path: Path, sign: Path, kind: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(folder / "shard-000.tar", sign)
    with pytest.raises(DataError, match="shards"):
        list(read_corpus(corpus(kind, folder)))
    assert [path.name for path in folder.iterdir()] == ["shard-000.tar"]
    assert not sign.exists()


@pytest.mark.parametrize("name", ["a.tar", "a.pickle", "a.pth", "a.pyd", "a.npy", "a.wav"])
def test_a_row_whose_recording_is_something_else_is_unreadable(tmp_path: Path, sign: Path, name: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Evil(sign)))
    (folder / "m.jsonl").write_text(json.dumps({"id": "a", "audio": name, "text": "one"}))
    (row,) = read_corpus(corpus("manifest", folder / "m.jsonl"))
    assert isinstance(row, Utterance)
    with pytest.raises(AudioRejected) as rejected:
        read_audio(row.audio)
    assert rejected.value.code == "unreadable"
    assert not sign.exists()


TAGS = [
    "!!python/object/apply:os.mkdir ['{sign}']",
    "!!python/object/new:os.mkdir ['{sign}']",
    "!!python/name:os.system",
    "!!python/module:os",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("command", ["prepare", "evaluate", "serve", "tune", "demo"])
def test_yaml_constructs_nothing(
    tmp_path: Path, sign: Path, tag: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"job: {command}\noutput: {tag.format(sign=sign)}\n")
    assert cli.run([command, str(file), "--dry-run"]) == ConfigError.exit_code
    assert "run.yaml" in capsys.readouterr().err
    for load in (load_tree, lambda path: load_config(path, ServeConfig)):
        with pytest.raises(ConfigError):
            load(file)
    assert not sign.exists()


@pytest.mark.parametrize(
    "tree",
    [
        {"class_path": "os.system", "init_args": {"command": "true"}},
        {"_target_": "os.system"},
        {"kind": "os.system"},
        {"kind": "mel_rvq", "class_path": "os.system"},
    ],
)
def test_classes_come_from_the_unions_alone(tree: dict[str, Any]) -> None:
    run = {"output": "o", "corpus": {"kind": "digits", "num_strings": 1}, "text": {"kind": "characters"}, "codec": tree}
    with pytest.raises(ConfigError, match="codec"):
        validate(run, PrepareConfig, where="t")


def write_pickled(folder: Path, sign: Path, name: str = "pytorch_model.bin") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    torch.save({"weight": Evil(sign)}, folder / name)
    return folder


PICKLED: dict[str, Callable[[Path], Any]] = {
    "import": lambda folder: Checkpoint.open(folder),
    "whisper": lambda folder: open_recogniser(WhisperConfig(path=folder)),
    "ctc": lambda folder: open_recogniser(CTCConfig(path=folder)),
    "speaker": lambda folder: open_speaker_encoder(TransformersSpeakerConfig(path=folder)),
    "model": lambda folder: load_codec_lm(folder),
    "encodec": lambda folder: load_encodec(EncodecConfig(checkpoint=folder / "pytorch_model.bin")),
}


@pytest.mark.parametrize("loader", PICKLED)
def test_pickled_weights_run_nothing_whoever_is_given_them(tmp_path: Path, sign: Path, loader: str) -> None:
    folder = write_pickled(tmp_path / "hostile", sign)
    with pytest.raises(RetortError) as error:
        PICKLED[loader](folder)
    assert str(folder) in str(error.value)
    assert not sign.exists()


def test_the_hostile_pickle_would_run(tmp_path: Path, sign: Path) -> None:
    folder = write_pickled(tmp_path / "hostile", sign)
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert sign.is_dir()


def add_code(folder: Path, sign: Path) -> None:
    """What a repository with remote code has: classes named in its files, and a module beside them."""
    names = ("Config", "ModelForCTC", "ModelForAudioXVector", "FeatureExtractor", "Processor")
    classes = {"AutoTokenizer": ["evil.T", "evil.T"], **{f"Auto{name}": f"evil.{name}" for name in names}}
    for file in folder.glob("*.json"):
        tree = json.loads(file.read_text())
        if file.name in ("config.json", "preprocessor_config.json", "tokenizer_config.json", "processor_config.json"):
            file.write_text(json.dumps({**tree, "auto_map": classes}))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(sign)!r})\n")


@pytest.mark.parametrize("kind", ["ctc", "speaker"])
def test_code_beside_a_checkpoint_is_never_run(tmp_path: Path, sign: Path, kind: str) -> None:
    folder = tmp_path / "checkpoint"
    write, load = {
        "ctc": (lambda: write_ctc(folder, "wav2vec2"), PICKLED["ctc"]),
        "speaker": (lambda: write_wavlm_sv(folder), PICKLED["speaker"]),
    }[kind]
    write()
    add_code(folder, sign)
    assert load(folder).name.endswith(":checkpoint"), "opened by the library's own classes"
    assert not sign.exists()


def test_an_import_of_pickled_weights_is_refused_with_exit_code_3(tmp_path: Path, sign: Path) -> None:
    folder = write_pickled(tmp_path / "hf", sign)
    add_code(folder, sign)
    tree = yaml.safe_load((Path(__file__).parents[2] / "jobs" / "configs" / "import_llasa.yaml").read_text())
    tree |= {"checkpoint": str(folder), "output": str(tmp_path / "out")}
    with pytest.raises(DataError, match="is a pickle") as error:
        run_import(validate(tree, ImportConfig, where="t"), QuietProgress())
    assert error.value.exit_code == 3
    assert not sign.exists()
    assert not (tmp_path / "out" / "result").exists()
