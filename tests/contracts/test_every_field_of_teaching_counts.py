"""Every field of what a teacher is guided with, of denoisers' shapes, of pruning and of aligners: it changes a result.

And no method is without such a law.
"""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.config import Config
from retort.data.mel_stream import MelBatchConfig
from retort.data.stream import BatchConfig
from retort.evaluation.judge import TestStrings
from retort.methods import guided_distill
from retort.methods.baked_guidance import ConditionedGuidance
from retort.methods.guided_distill import GuidedDistillConfig
from retort.methods.layer_pruning import MEASURED, WHOLE, LayerPruningConfig
from retort.methods.layer_table import Measured
from retort.methods.mel_pretrain import MelDiffusionShape, MelPretrainConfig
from retort.methods.phone_alignment import SpokenPhones, TrainAlignerConfig, train_aligner
from retort.models.aligner import AlignerConfig
from retort.models.weights import load_codec_lm
from retort.nn.diffusion_guidance import ConstantGuidance, NoDiffusionGuidance, RampedGuidance
from retort.nn.guidance import NoGuidance, ThreeTermGuidance, TwoTermGuidance
from retort.nn.noise_schedule import CosineSchedule, LinearSchedule
from retort.orchestration.prune import job
from retort.orchestration.prune.worker import Sweep
from retort.run_config import MelMethod, Method, PruneConfig
from retort.store.results import result_of
from retort.training.schedule import OptimizerConfig
from tests.contracts import test_every_field_counts
from tests.contracts.test_every_field_counts import Learned, ignored_by, run, small
from tests.contracts.test_every_field_of_decoding_counts import kinds_in
from tests.methods.mel_toys import some_denoiser
from tests.orchestration.mel_train_runs import pretrain_mels, write_world
from tests.orchestration.prune.test_job import config_of, write_speaking_teacher
from tests.orchestration.tiny_runs import Lines, write_token_set
from tests.orchestration.train_runs import distill, write_teacher, write_tokens

OTHERS = {MelPretrainConfig, LayerPruningConfig, TrainAlignerConfig, OptimizerConfig, BatchConfig, MelBatchConfig}
"""Methods beside the unions, and what every one of them has."""


def test_every_method_has_a_law() -> None:
    files = (Path(__file__), Path(str(test_every_field_counts.__file__)))
    calls = [node for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    asked = {ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "ignored_by"}
    assert {kind.__name__ for kind in kinds_in(Method) | kinds_in(MelMethod) | OTHERS} <= asked


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, a teacher, and mels."""
    root = tmp_path_factory.mktemp("teaching")
    write_tokens(root / "tokens" / "data")
    write_teacher(root / "tokens" / "teacher")
    write_world(root / "mels")
    return root


@pytest.mark.parametrize("kind", ["cfg_distill", "multilevel_distill"])
def test_guidance_of_a_codec_lm_that_teaches(world: Path, kind: str) -> None:
    def learn(config: Config) -> Learned:
        return run(distill(world / "tokens", "out", method={"kind": kind, "guidance": config.model_dump()}))

    assert ignored_by(NoGuidance, {}, {}, learn) == []
    assert ignored_by(TwoTermGuidance, {"scale": 3.0, "against": "no_speaker"}, {}, learn, scale=2.0) == []
    values = {"first_scale": 3.0, "second_scale": 3.0, "partial": "no_speaker"}
    assert ignored_by(ThreeTermGuidance, values, {}, learn, first_scale=1.5, second_scale=2.0) == []


def test_guidance_of_a_denoiser_that_teaches() -> None:
    def learn(config: Config) -> Learned:
        method = GuidedDistillConfig(guidance=config, num_steps=8)  # type: ignore[arg-type]
        teacher, objective = guided_distill.build(some_denoiser(), method, seed=3)
        return small(objective, teacher)

    assert ignored_by(NoDiffusionGuidance, {}, {}, learn) == []
    assert ignored_by(ConstantGuidance, {"scale": 3.0}, {}, learn, scale=2.0) == []
    assert ignored_by(RampedGuidance, {"scale": 3.0}, {}, learn, scale=2.0) == []
    assert ignored_by(ConditionedGuidance, {"min_scale": 2.0, "max_scale": 9.0}, {}, learn) == []
    kinds = (NoDiffusionGuidance(), ConstantGuidance(scale=2.0), RampedGuidance(scale=2.0), ConditionedGuidance())
    assert len({learn(kind) for kind in kinds}) == len(kinds)


def test_shapes_schedules_and_batches_of_denoisers(world: Path) -> None:
    plain = pretrain_mels(world / "mels", "out")
    batch = {"max_utterances": 2, "max_frames": 40}

    def of_shape(config: Config) -> Learned:
        return run(plain.replace(model=config))

    def of_schedule(config: Config) -> Learned:
        return run(plain.replace(model=plain.model.replace(schedule=config)))

    def of_batch(config: Config) -> Learned:
        return run(plain.replace(training=plain.training.replace(batch=config)))

    assert ignored_by(MelBatchConfig, batch, {}, of_batch, max_utterances=6, max_frames=150) == []
    assert ignored_by(LinearSchedule, {"num_steps": 1000}, {}, of_schedule) == []
    assert ignored_by(CosineSchedule, {"log_snr_min": -10.0, "log_snr_max": 10.0}, {}, of_schedule) == []
    values = {
        "dim": 24, "num_layers": 2, "num_heads": 4, "ffn_dim": 48, "patch_frames": 1, "prediction": "x",
        "schedule": CosineSchedule(), "dropout": 0.5, "mel_max": 3.0,
    }  # fmt: skip
    base = {"dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 32}
    assert ignored_by(MelDiffusionShape, values, {}, of_shape, **base) == []


def measured(sweep: Sweep) -> Measured:
    """Four layers, of which the last two stand in for each other; other criteria see another order."""
    alone = {0: 0.9, 1: 0.3, 2: 0.1, 3: 0.2}
    gone = set(range(4)) - set(sweep.present)

    def errors(layer: int) -> float:
        without = gone | {layer}
        return sum(alone[each] for each in without - {WHOLE}) + (0.8 if {2, 3} <= without else 0.0)

    rows = [
        {"left_out": layer, "id": "u", "wer": errors(layer), "scored_wer": errors(layer), "failed": False, "kl": layer}
        for layer in sweep.left_out
    ]
    influence = [{"layer": layer, "id": "u", "block_influence": (layer - 1.5) ** 2} for layer in sweep.present]
    return Measured.gather(sweep.present, rows, influence)


def test_pruning_of_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_speaking_teacher(tmp_path / "teacher", write_token_set(tmp_path / "data"))
    teacher = load_codec_lm(result_of(tmp_path / "teacher"))
    strings = TestStrings(result_of(tmp_path / "data"), split="train", count=8)
    monkeypatch.setattr(job, "_measure", lambda config, sweep, folder, progress: measured(sweep))

    def choose(method: Config) -> Any:
        config: PruneConfig = config_of(tmp_path, tmp_path / "out").replace(method=method)
        removal = job._remove(config, 4, strings, tmp_path, Lines())
        choice = job._choose(config, teacher, removal)
        return choice.kept[choice.criterion][choice.num_kept], [sweep.present for sweep in removal.sweeps]

    values = {"criterion": "kl", "removal": "greedy", "layers_per_round": 1, "keep_ratio": 0.75, "forced_keep": (2,)}
    base: dict[str, Any] = {"removal": "iterative", "keep_ratio": 0.5, "forced_keep": (0,)}
    assert ignored_by(LayerPruningConfig, values, {}, choose, **base) == []
    criteria = [choose(LayerPruningConfig(criterion=name, keep_ratio=0.5, forced_keep=())) for name in MEASURED]
    assert len({kept for kept, _ in criteria}) == len(MEASURED)


def test_training_of_aligners() -> None:
    draw = torch.Generator().manual_seed(0)
    mel = AlignerConfig(voice="en-us", phones=("a",)).mel
    rows = [SpokenPhones(torch.randn(20 + 3 * n, mel.num_mels, generator=draw), ("a", "b", "c")) for n in range(5)]

    def learn(config: Config) -> Learned:
        assert isinstance(config, TrainAlignerConfig)
        losses: list[float] = []
        model = train_aligner(rows, config, voice="en-us", mel=mel, on_step=lambda _, __, loss: losses.append(loss))
        return (*losses, *(float(p.detach().double().abs().sum()) for p in model.parameters()))

    values = {
        "dim": 16, "flat_steps": 3, "ctc_steps": 4, "rounds": 2, "frame_steps": 3, "batch_size": 3,
        "learning_rate": 1e-2, "seed": 1,
    }  # fmt: skip
    reasons = {"utterances": "how many rows are read for it: tests/orchestration/align/test_align_job.py"}
    base = {"dim": 8, "flat_steps": 2, "ctc_steps": 3, "rounds": 1, "frame_steps": 2, "batch_size": 2}
    assert ignored_by(TrainAlignerConfig, values, reasons, learn, **base) == []
