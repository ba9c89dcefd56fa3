"""Both stages of the zero-shot method on a toy: what is learned, what is drawn, what is refused, what is left."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retort.data.phone_mel_stream import PhoneMelBatch, PhoneMelStream
from retort.data.phone_mels import FromRecordings, FromSwaps
from retort.errors import ConfigError, DataError
from retort.methods.self_distill import SelfDistillation, SelfDistillConfig, student_config
from retort.methods.zero_shot_data import scales_of
from retort.methods.zero_shot_learning import (
    ContrastiveConfig,
    ZeroShotLosses,
    ZeroShotObjective,
    ZeroShotTeacher,
    cropped,
)
from retort.methods.zero_shot_pretrain import ZeroShotPretrainConfig, ZeroShotPretraining
from retort.models.student_shape import SameAsTeacher
from retort.models.vocoder_lineage import VocoderLineage
from retort.models.weights import WEIGHTS_FILE, load_zero_shot, save_model
from retort.models.zero_shot.model import ZeroShot
from retort.models.zero_shot.presets import ZeroShotShape
from retort.models.zero_shot.timbre import ERes2NetTimbreConfig, ResemblyzerTimbreConfig, timbre_encoder_beside
from retort.models.zero_shot.voices import read_voices
from retort.store.artifact import Artifact, describe_artifact, read_artifact, write_artifact
from retort.training.fit import PlainOptimizer, fit
from retort.training.schedule import OptimizerConfig
from retort.training.seam import Place, Problem, StepOutput
from tests.methods import vocoder_toys
from tests.methods.zero_shot_toys import (
    BATCHES,
    MEL,
    TOY,
    ToyTimbre,
    describe,
    some_model,
    swapped_rows,
    toy_rows,
    toy_stream,
    write_set,
)

SHAPE = ZeroShotShape(
    dim=16, num_layers=1, num_heads=2, ffn_dim=24, mel_channels=(2, 3), latent_dim=4, flow_dim=8, num_couplings=2,
    style_layers=1, predictor_dim=12, decoder_dim=16, decoder_dilations=(1,), decoder_kernel=3,
)  # fmt: skip
CONTRAST = ContrastiveConfig(weight=0.2, temperature=0.2, batches=1.0, fraction=0.5, frames=16)
LOSSES = ZeroShotLosses(contrastive=CONTRAST)
SILENT = ZeroShotLosses(contrastive=ContrastiveConfig(weight=0.0))
TIMBRE = ResemblyzerTimbreConfig()


def train(stream: PhoneMelStream, losses: ZeroShotLosses, steps: int, seed: int = 0) -> tuple[ZeroShot, list[Any]]:
    """A model that starts anew, and what each step gave."""
    torch.manual_seed(seed)
    objective = ZeroShotObjective(ZeroShot(TOY).train(), losses, ToyTimbre())
    optimizer = PlainOptimizer(objective, OptimizerConfig(learning_rate=5e-3, weight_decay=0.0), steps)
    outputs: list[StepOutput] = []
    batches: Iterator[tuple[PhoneMelBatch, None]] = ((stream.batch(n), None) for n in range(steps))
    fit(objective, ZeroShotTeacher(TOY, losses, seed=1), batches, optimizer, lambda _, out: outputs.append(out))
    return objective.student.eval(), outputs


def mean_of(outputs: list[StepOutput], name: str) -> float:
    return sum(float(out.metrics[name]) for out in outputs) / len(outputs)


def test_all_that_is_asked_for_is_learned(tmp_path: Path) -> None:
    model, outputs = train(toy_stream(tmp_path), LOSSES, 220)
    first, last = outputs[:10], outputs[-10:]
    assert mean_of(last, "mel_l1") < 0.5 * mean_of(first, "mel_l1")
    for name in ("duration", "pitch", "voicing", "energy", "contrastive"):
        assert mean_of(last, name) < 0.9 * mean_of(first, name), name
    # Spoken without a source, in the voice of the prompt: nearer to the speaker's own mel than to another's.
    batch = toy_stream(tmp_path / "again").batch(0)
    said = model.synthesise(
        batch.spoken.phones_BP, batch.voice, batch.row_B, noise_scale=0.3, frames_BP=batch.spoken.frames_BP
    )
    own = (said.mel_BTM - batch.target_BTM)[batch.mask_BT].abs().mean()
    tilt_M = torch.linspace(-1, 1, 8)
    assert float(own) < 0.75 * float((said.mel_BTM + tilt_M - batch.target_BTM)[batch.mask_BT].abs().mean())


def test_same_seed_same_bits(tmp_path: Path) -> None:
    stream = toy_stream(tmp_path, share=0.5)
    first, second = (train(stream, LOSSES, 5)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_is_the_weighted_sum_of_its_terms(tmp_path: Path) -> None:
    batch, losses = toy_stream(tmp_path).batch(0), LOSSES.replace(mel_ssim=0.3, kl=0.7)
    objective = ZeroShotObjective(some_model(), losses, ToyTimbre())
    out = objective(batch, ZeroShotTeacher(TOY, losses).targets(batch))
    weights = {name: value for name, value in dict(losses).items() if isinstance(value, float)}
    weights["contrastive"] = CONTRAST.weight
    expected = sum(weights[name] * float(value) for name, value in out.metrics.items() if name != "swapped")
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_padding_changes_no_term(tmp_path: Path) -> None:
    batch = toy_stream(tmp_path).batch(0)
    losses = LOSSES.replace(mel_ssim=0.3)
    objective, targets = (
        ZeroShotObjective(some_model(), losses, ToyTimbre()),
        ZeroShotTeacher(TOY, losses).targets(batch),
    )

    def longer(x: Tensor, value: float = 0.0) -> Tensor:
        return torch.cat([x, torch.full((len(x), 6, *x.shape[2:]), value).to(x.dtype)], dim=1)

    spoken = type(batch.spoken)(*(longer(x) for x in vars(batch.spoken).values()))
    voice = type(batch.voice)(longer(batch.voice.mel_BSM, 5.0), longer(batch.voice.mask_BS), batch.voice.timbre_BE)
    wide = PhoneMelBatch(
        spoken, voice, longer(batch.source_BTM, 5.0), longer(batch.target_BTM, 5.0), longer(batch.mask_BT),
        batch.speaker_B, batch.swapped_B, batch.row_B,
    )  # fmt: skip
    wide_targets = type(targets)(longer(targets.noise_BPC, 3.0), targets.anchors_A, targets.starts_A)
    ours, theirs = objective(batch, targets).metrics, objective(wide, wide_targets).metrics
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)


def test_anchors_are_a_share_of_the_rows_and_crops_lie_inside(tmp_path: Path) -> None:
    stream = toy_stream(tmp_path)
    for n in range(20):
        batch = stream.batch(n)
        targets = ZeroShotTeacher(TOY, LOSSES, seed=n).targets(batch)
        assert len(set(targets.anchors_A.tolist())) == len(targets.anchors_A) == max(1, round(len(batch.row_B) / 2))
        lengths = batch.mask_BT.sum(1)[targets.anchors_A]
        assert bool((targets.starts_A + torch.minimum(lengths, torch.tensor(CONTRAST.frames)) <= lengths).all())
    assert len(ZeroShotTeacher(TOY, SILENT).targets(stream.batch(0)).anchors_A) == 0


def test_the_contrast_is_computed_in_a_share_of_the_batches_and_weighs_the_more(tmp_path: Path) -> None:
    batch, losses = toy_stream(tmp_path).batch(0), LOSSES.replace(contrastive=CONTRAST.replace(batches=0.25))
    objective, draws = ZeroShotObjective(some_model(), losses, ToyTimbre()), ZeroShotTeacher(TOY, losses, seed=2)
    targets = [draws.targets(batch) for _ in range(200)]
    heard = [one for one in targets if len(one.anchors_A)]
    assert 30 <= len(heard) <= 70
    silent = next(one for one in targets if not len(one.anchors_A))
    assert float(objective(batch, silent).metrics["contrastive"]) == 0.0
    always = ZeroShotObjective(objective.student, LOSSES, ToyTimbre())(batch, heard[0]).metrics["contrastive"]
    torch.testing.assert_close(objective(batch, heard[0]).metrics["contrastive"], 4 * always)


def test_a_crop_of_a_short_row_ends_where_the_row_does() -> None:
    mel, mask = torch.arange(12.0).view(2, 6, 1), torch.arange(6) < torch.tensor([[6], [3]])
    found, valid = cropped(mel, mask, torch.tensor([4, 0]), 4)
    assert valid.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert found[0, :2, 0].tolist() == [4.0, 5.0]
    assert found[1, :3, 0].tolist() == [6.0, 7.0, 8.0]


def test_scales_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = toy_rows()
    scales = scales_of(write_set(tmp_path / "set", rows, describe(FromRecordings())))
    mels = torch.cat([row.mel_TM for row in rows])
    assert scales.mel_mean == pytest.approx(float(mels.mean()), abs=1e-3)
    assert scales.mel_std == pytest.approx(float(mels.std()), abs=1e-3)
    voiced = torch.cat([row.log_f0_P[row.voiced_P] for row in rows])
    assert scales.log_f0_mean == pytest.approx(float(voiced.mean()), abs=1e-3)
    torch.testing.assert_close(scales.mel_out(scales.mel_in(mels)), mels)


def committed(folder: Path, description: Any, rows: list[Any]) -> Artifact:
    """A set as a finished job leaves it."""
    info = describe_artifact("phone_mels", "toy", "1", inputs={}, config={})
    write_artifact(folder, info, lambda staging: write_set(staging, rows, description))
    return read_artifact(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Recordings, a teacher of one step, and what it is said to have said."""
    root = tmp_path_factory.mktemp("zero_shot")
    made = describe(FromRecordings(), timbre_encoder="resemblyzer-0.1")
    data = committed(root / "data", made, toy_rows())
    method = ZeroShotPretrainConfig(losses=SILENT)
    task = ZeroShotPretraining(root / "data", SHAPE, TIMBRE, method, BATCHES, 0)
    problem = task.build(Place())
    weights = {name.removeprefix("student."): w for name, w in problem.objective.state_dict().items()}
    trained = problem.trained(weights)
    write_artifact(root / "teacher", describe_artifact("model", "toy", "1", inputs={}, config={}), trained.save)
    source = FromSwaps(
        teacher_fingerprint=trained.fingerprint, mels_fingerprint=data.fingerprint, pairs_per_row=1, noise_scale=0.5,
        filters={},
    )  # fmt: skip
    committed(root / "swapped", made.replace(source=source), swapped_rows(toy_rows()))
    return {"root": root, "made": made, "task": task, "trained": trained, "source": source}


def distillation(world: dict[str, Any], **changes: Any) -> SelfDistillation:
    root = world["root"]
    given = {
        "teacher": root / "teacher", "data": root / "data", "swapped": root / "swapped", "student": SameAsTeacher(),
        "timbre": TIMBRE, "method": SelfDistillConfig(losses=SILENT), "batch": BATCHES, "seed": 0,
    }  # fmt: skip
    return SelfDistillation(**{**given, **changes})


def test_a_teacher_leaves_what_a_speaker_needs(world: dict[str, Any]) -> None:
    assert set(world["task"].check()) == {"data"}
    loaded, voices = load_zero_shot(world["root"] / "teacher"), read_voices(world["root"] / "teacher")
    assert loaded.fingerprint == world["trained"].fingerprint
    assert loaded.lineage.phones == world["made"].phones
    assert loaded.lineage.mel == MEL
    assert set(voices) == {row.speaker for row in toy_rows()}
    for name, voice in voices.items():
        own = [row for row in toy_rows() if row.speaker == name and torch.equal(row.timbre_E, voice.timbre_E)]
        assert len(own) == 1
        torch.testing.assert_close(voice.prompt_SM, own[0].mel_TM[: BATCHES.prompt_max_frames], rtol=0, atol=2e-2)


def test_a_student_starts_as_its_teacher_or_anew(world: dict[str, Any]) -> None:
    fingerprints = distillation(world).check()
    assert set(fingerprints) == {"data", "teacher", "swapped"}
    teacher = load_zero_shot(world["root"] / "teacher").model.state_dict()
    warm = distillation(world).build(Place())
    assert all(
        torch.equal(w, teacher[name.removeprefix("student.")]) for name, w in warm.objective.state_dict().items()
    )
    anew = distillation(world, seed=5, method=SelfDistillConfig(losses=SILENT, init="random", sigma=0.5)).build(Place())
    assert not torch.equal(anew.objective.state_dict()["student.decoder.leave.weight"],
                           teacher["decoder.leave.weight"])  # fmt: skip
    weights = {name.removeprefix("student."): w for name, w in anew.objective.state_dict().items()}
    lineage = anew.trained(weights).lineage  # type: ignore[attr-defined]
    assert lineage.method == "self_distill"
    assert (lineage.self_distilled.sigma, lineage.self_distilled.init) == (0.5, "random")
    assert lineage.self_distilled.teacher_fingerprint == fingerprints["teacher"]
    assert lineage.self_distilled.swapped_share == anew.batches.swapped_share > 0.0  # type: ignore[attr-defined]
    assert bool(torch.cat([warm.batches.batch(n).swapped_B for n in range(6)]).any())


def test_a_student_of_its_teachers_shape_has_the_dropout_that_the_file_says(world: dict[str, Any]) -> None:
    """None by default, whatever the teacher was trained with (METHODS.md, trap 23)."""
    teacher = TOY.replace(dropout=0.1)
    for init in ("teacher", "random"):
        for size, dropout in ((SameAsTeacher(), 0.0), (SameAsTeacher(dropout=0.3), 0.3)):
            assert student_config(teacher, size, init) == TOY.replace(dropout=dropout)  # type: ignore[arg-type]
    student = distillation(world, student=SameAsTeacher(dropout=0.3)).build(Place()).objective.student
    assert student.config.dropout == 0.3


def weights_of(problem: Problem) -> dict[str, torch.Tensor]:
    return {name.removeprefix("student."): w for name, w in problem.objective.state_dict().items()}


def test_a_vocoder_goes_along_and_from_a_teacher_to_its_student(world: dict[str, Any], tmp_path: Path) -> None:
    lineage = VocoderLineage(method="vocoder_pretrain", corpus_digest="c")
    for name, mel in (("vocoder", MEL), ("other", MEL.replace(hop_samples=160))):
        save_model(tmp_path / name, vocoder_toys.toy_vocoder(vocoder_toys.TOY.replace(mel=mel)), lineage)
    task = replace(world["task"], vocoder=tmp_path / "vocoder")
    assert task.check()["vocoder"].startswith("vocoder-")
    trained = task.build(Place()).trained(weights_of(world["task"].build(Place())))
    write_artifact(tmp_path / "teacher", describe_artifact("model", "t", "1", inputs={}, config={}), trained.save)
    problem = distillation(world, teacher=tmp_path / "teacher").build(Place())
    problem.trained(weights_of(problem)).save(tmp_path / "student")
    files = [(tmp_path / name / "vocoder" / WEIGHTS_FILE).read_bytes() for name in ("teacher", "student")]
    assert files[0] == files[1] == (tmp_path / "vocoder" / WEIGHTS_FILE).read_bytes()
    assert not (world["root"] / "teacher" / "vocoder").exists()
    with pytest.raises(DataError, match=r"hop_samples 160, and here they have hop_samples 200"):
        replace(world["task"], vocoder=tmp_path / "other").check()


@pytest.mark.parametrize("name", ["eres2netv2.safetensors", "pretrained_eres2netv2.ckpt", "weights"])
def test_a_speaker_encoder_that_is_a_file_goes_along(world: dict[str, Any], tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"weights")
    trained = world["task"].build(Place()).trained(weights_of(world["task"].build(Place())))
    for encoder in (ResemblyzerTimbreConfig(), ERes2NetTimbreConfig(path=file)):
        folder = tmp_path / encoder.kind
        folder.mkdir()
        replace(trained, timbre=encoder).save(folder)
        found = timbre_encoder_beside(folder)
        assert found.kind == encoder.kind
        if isinstance(found, ERes2NetTimbreConfig):
            assert (found.path.parent, found.path.suffix) == (folder, file.suffix)
            assert found.path.read_bytes() == b"weights"


def test_inputs_that_do_not_belong_together_are_refused(world: dict[str, Any], tmp_path: Path) -> None:
    made, source = world["made"], world["source"]
    other = SHAPE.replace(dim=32)
    with pytest.raises(ConfigError, match="init: teacher needs a student of the teacher's shape"):
        distillation(world, student=other).check()
    distillation(world, student=other, method=SelfDistillConfig(losses=SILENT, init="random")).check()
    with pytest.raises(ConfigError, match="holds recordings; give what the teacher said"):
        distillation(world, swapped=world["root"] / "data").check()
    with pytest.raises(ConfigError, match="was spoken by a teacher; give recordings"):
        distillation(world, data=world["root"] / "swapped").check()
    committed(tmp_path / "stranger", made.replace(source=source.replace(teacher_fingerprint="x")), toy_rows())
    with pytest.raises(DataError, match=r"the teacher differs: .* was made with x, .* again"):
        distillation(world, swapped=tmp_path / "stranger").check()
    committed(tmp_path / "phones", made.replace(phones=("a", "b", "c", "d", "i", "s")), toy_rows())
    with pytest.raises(DataError, match="the inventory of phones differs"):
        distillation(world, data=tmp_path / "phones").check()
    committed(tmp_path / "timbre", made.replace(timbre_encoder="another"), toy_rows())
    with pytest.raises(DataError, match=r"the timbre encoder differs: .*another.*resemblyzer-0\.1.*name the same"):
        distillation(world, data=tmp_path / "timbre").check()
