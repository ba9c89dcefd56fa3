"""Files that were written here and are read back: damaged ones are told with their path, and in our own words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.cli_output import explain_failure
from retort.config import read_record
from retort.data.mels import MelSet
from retort.data.synthetic import SyntheticSet
from retort.data.tokens import TokenSet, refuse_mismatch
from retort.errors import DataError
from retort.methods.guided_distill import check_parity
from retort.models.layer_choice import LayerChoice, read_choice
from retort.models.mel_lineage import MelDiffusionLineage
from retort.nn.guidance import TwoTermGuidance
from retort.store.artifact import describe_artifact, write_artifact

GUIDED = MelDiffusionLineage(
    method="guided_distill", lm_fingerprint="l", codec_fingerprint="c", text_fingerprint="t", teacher_fingerprint="d"
)
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "token set": ("tokens.json", TokenSet.open),
    "mel set": ("mels.json", MelSet.open),
    "synthetic set": ("synthetic.json", SyntheticSet.open),
    "choice of layers": ("layers.json", read_choice),
    "parity": ("parity.json", lambda folder: check_parity(folder, GUIDED)),
}
DAMAGED = {"cut": b'{"a": ', "empty": b"", "another": b'{"a": 1}', "a list": b"[1]", "no text": b"\xff\xfe\x00"}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_record_is_told_with_its_path_and_the_cure(tmp_path: Path, kind: str, damage: str) -> None:
    name, read = READERS[kind]

    def fill(target: Path) -> None:
        (target / name).write_bytes(DAMAGED[damage])

    info = describe_artifact("model", "made", "1", inputs={}, config={})
    folder = write_artifact(tmp_path / "result", info, fill).path
    with pytest.raises(DataError, match=rf"{name}: damaged, or not of this version: .*; .* again") as raised:
        read(folder if "set" in kind else tmp_path)
    told = str(raised.value)
    assert "pydantic" not in told
    assert "\n" not in told
    failure = explain_failure(raised.value)
    assert failure is not None
    assert failure.exit_code == 3


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_value_that_only_an_object_refuses_is_told_in_our_words_too(scale: float) -> None:
    with pytest.raises(ValueError, match="pydantic") as raised:
        TwoTermGuidance(scale=scale)
    failure = explain_failure(raised.value)
    assert failure is not None
    assert failure.exit_code == 2
    assert failure.message == (
        f"TwoTermGuidance: scale: Input should be greater than 0 (got {scale}); correct the value"
    )


def test_a_record_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"layers\.json: cannot be read: No such file"):
        read_record(tmp_path / "layers.json", LayerChoice, cure="prune again")


@pytest.mark.parametrize("part", ["codec", "text front-end", "codec LM"])
def test_a_mismatch_says_what_differs_and_both_values(part: str) -> None:
    refuse_mismatch(part, "the teacher", "a-1", "runs/data", "a-1", "do")
    with pytest.raises(DataError, match=f"^the {part} differs: the teacher was made with a-1, runs/data with b-2; do$"):
        refuse_mismatch(part, "the teacher", "a-1", "runs/data", "b-2", "do")
