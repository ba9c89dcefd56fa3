"""What is asked of a token set and of a model for it, before anything starts."""

from pathlib import Path

import pytest
import torch

from retort.data.tokens import TokenSet
from retort.errors import DataError, StorageError
from retort.methods.codec_lm_data import check_fits_tokens
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.presets import tiny
from retort.models.weights import LoadedModel
from retort.orchestration.progress import QuietProgress
from retort.orchestration.train.job import run_pretrain
from retort.store.artifact import Artifact
from tests.methods.distillations import checked
from tests.orchestration.train_runs import VOCABULARIES, distill, pretrain, write_teacher, write_tokens


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    return write_tokens(tmp_path / "data")


def test_inputs_are_verified(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    job = distill(tmp_path, "out")
    found = checked(job)
    assert set(found) == {"data", "teacher"}
    assert found["data"] == data.fingerprint
    with (data.path / "part.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StorageError, match="damaged"):
        checked(job)
    with pytest.raises(DataError, match="no such folder"):
        run_pretrain(pretrain(tmp_path / "elsewhere", "out"), QuietProgress())


def test_a_token_set_without_its_codec_is_refused(tmp_path: Path, data: Artifact) -> None:
    """A model is saved with the codec and the text front-end of its data; their absence must not show at the end."""
    import shutil

    from retort.store.commit import commit_folder

    with commit_folder(tmp_path / "bare" / "data" / "result") as folder:
        shutil.copytree(
            data.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("codec", "COMMITTED", "MAN*")
        )
    with pytest.raises(DataError, match="lacks its codec folder"):
        checked(pretrain(tmp_path / "bare", "out"))


@pytest.mark.parametrize(
    ("lineage", "vocabularies", "message"),
    [
        (
            {"codec_fingerprint": "codec-b"},
            VOCABULARIES,
            r"the codec differs: the teacher was made with codec-b, .*data with codec-a",
        ),
        (
            {"text_fingerprint": "text-b"},
            VOCABULARIES,
            r"the text front-end differs: the teacher was made with text-b, .*data with text-a",
        ),
        ({}, (12, 2, 17), "codebooks differs: .* 2 codebooks of 17, .* with 2 codebooks of 16"),
        ({}, (12, 1, 16), "1 codebooks of 16, .* with 2 codebooks of 16"),
    ],
)
def test_a_model_of_other_tokens_is_refused_with_both_values_and_the_cure(
    tmp_path: Path, data: Artifact, lineage: dict[str, str], vocabularies: tuple[int, int, int], message: str
) -> None:
    torch.manual_seed(0)
    facts = {"codec_fingerprint": "codec-a", "text_fingerprint": "text-a", **lineage}
    loaded = LoadedModel(CodecLM(tiny(vocabularies)), CodecLMLineage(method="pretrain", **facts), "codec_lm-1")
    made = TokenSet.open(data.path).description
    with pytest.raises(DataError, match=f"{message}.*prepare the data with its codec and text front-end"):
        check_fits_tokens(loaded, made, who="the teacher", data=tmp_path / "data")
    fitting = CodecLMLineage(method="pretrain", codec_fingerprint="codec-a", text_fingerprint="text-a")
    loaded = LoadedModel(CodecLM(tiny(VOCABULARIES)), fitting, "codec_lm-2")
    check_fits_tokens(loaded, made, who="the teacher", data=tmp_path / "data")
