"""Denoisers that share codes and noise are compared mel by mel."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from retort.config import validate
from retort.errors import ConfigError, DataError
from retort.evaluation.judge import TestStrings
from retort.evaluation.results import Pair, summarise
from retort.evaluation.speed import Measured
from retort.orchestration.evaluate.pieces import Piece
from retort.orchestration.evaluate.system_facts import check_shared_codes, describe_system
from retort.orchestration.evaluate.tasks import PlainTask
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.run_config import EvaluateConfig
from retort.store.artifact import describe_artifact, write_artifact
from tests.inference.speaking import STUDENT, speaking_denoiser


def denoised(name: str, model: Path, *, steps: int = 2, temperature: float = 1.0) -> dict[str, Any]:
    lm = {"kind": "codec_lm", "sampler": {"temperature": temperature}}
    decoding = {"kind": "mel_diffusion", "solver": {"kind": "ddim", "num_steps": steps}, "lm": lm}
    return {"name": name, "kind": "model", "role": "teacher", "model": str(model), "decoding": decoding}


def evaluation(root: Path, *systems: dict[str, Any], **changes: JsonValue) -> EvaluateConfig:
    tree = {
        "output": str(root / "evaluation"), "data": str(root / "data"), "split": "train", "num_strings": 2,
        "systems": list(systems), "recogniser": {"kind": "pocketsphinx"}, "max_frames": 12, "batch_size": 1,
        "mel_reference": "slow", "num_resamples": 100,
    }  # fmt: skip
    return validate({**tree, **changes}, EvaluateConfig, where="test")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mel_reference")
    write_speaking_inputs(folder)
    return folder


def write_speaking_inputs(folder: Path, **lineage: Any) -> Path:
    """A denoiser, whose folder is returned, and the token set ``data`` as a result."""
    model = speaking_denoiser(folder, **lineage)
    (folder / "data").rename(folder / "tokens")
    info = describe_artifact("tokens", "data", "1", inputs={}, config={})
    write_artifact(folder / "data", info, lambda target: shutil.copytree(folder / "tokens", target, dirs_exist_ok=True))
    return model


def judged(config: EvaluateConfig, folder: Path) -> list[str]:
    """Ids, after every system has said each in a piece of its own."""
    folder.mkdir()
    worker = EvaluationWorker(config.model_dump(mode="json"), 1)
    ids = sorted(worker.strings.rows)
    for system in config.systems:
        for number, name in enumerate(ids):
            worker.judge(PlainTask(system.name, number, (name,)), str(folder), [])
    return ids


def test_distances_are_of_the_mels_alone_and_summed_up(root: Path, tmp_path: Path) -> None:
    model = root / "denoiser"
    systems = denoised("slow", model, steps=8), denoised("fast", model), denoised("again", model, steps=8)
    lm = {"name": "lm", "kind": "model", "role": "teacher", "model": str(root / "model")}
    config = evaluation(root, *systems, lm)
    check_shared_codes(config)
    folder = tmp_path / "pieces"
    pieces = range(len(judged(config, folder)))
    items = [
        item for s in config.systems for n in pieces for item in Piece(folder, s.name, n).read(config.mel_reference)
    ]
    distances = {s.name: [i.values.get("mel_distance") for i in items if i.system == s.name] for s in config.systems}
    assert distances["slow"] == distances["lm"] == [None, None]
    assert distances["again"] == [0.0, 0.0], "the same steps from the same noise"
    assert all(distance is not None and distance > 0.1 for distance in distances["fast"])
    strings = TestStrings(config.data, split="train", count=2)
    infos = [describe_system(system, config, strings) for system in config.systems]
    tree = summarise(items, infos, [Pair("again", "fast", "mel_distance")]).tree()
    fast = next(system for system in tree["systems"] if system["name"] == "fast")
    assert fast["mel_distance"] == pytest.approx(sum(distances["fast"]) / 2)
    assert fast["mel_distance_utterances"] == 2
    assert [c["difference"] for c in tree["comparisons"]] == [pytest.approx(fast["mel_distance"])]


def test_another_length_names_the_utterance(root: Path, tmp_path: Path) -> None:
    config = evaluation(root, denoised("slow", root / "denoiser"), denoised("fast", root / "denoiser"))
    config, longer = config.replace(max_frames=2), config.replace(max_frames=3)
    ids = judged(config, tmp_path / "a")
    judged(longer, tmp_path / "b")
    (tmp_path / "b" / "slow-0000.mels.safetensors").replace(tmp_path / "a" / "slow-0000.mels.safetensors")
    with pytest.raises(DataError, match=f"{ids[0]}.*4 mel frames, mel_reference has 6; the two did not share"):
        Piece(tmp_path / "a", "fast", 0).read(config.mel_reference)


def test_a_reference_that_cannot_share_codes_is_refused_at_once(root: Path, tmp_path: Path) -> None:
    slow = denoised("slow", root / "denoiser")
    warmer = evaluation(root, slow, denoised("warm", root / "denoiser", temperature=0.5))
    with pytest.raises(ConfigError, match="warm and mel_reference slow do not share codes"):
        check_shared_codes(warmer)
    lm = {"name": "slow", "kind": "model", "role": "teacher", "model": str(root / "model")}
    with pytest.raises(ConfigError, match="makes no mels"):
        check_shared_codes(evaluation(root, lm))
    with pytest.raises(ConfigError, match="mel_reference names 'ghost'"):
        evaluation(root, slow, mel_reference="ghost")
    with pytest.raises(ConfigError, match="no system of kind: model"):
        evaluation(root, {"name": "slow", "kind": "recordings"})


def test_speed_of_a_denoiser_is_told_by_its_own_figures(tmp_path: Path) -> None:
    model = write_speaking_inputs(tmp_path, **STUDENT)
    plain = {"name": "slow", "kind": "model", "role": "student", "model": str(model)}
    speed = {"batch_sizes": [1, 2], "num_frames": 8, "rounds": 1, "window_s": 0.01}
    worker = EvaluationWorker(evaluation(tmp_path, plain, speed=speed).model_dump(mode="json"), 1)
    *_, measured = worker.speed()
    assert isinstance(measured, Measured)
    found = {name: figure.value for name, figure in measured.figures["slow"].items()}
    assert found["nfe"] == 4
    assert 0 < found["diffusion_rtf"] < found["rtf"]
    assert found["rtf_batch1"] > 0
