"""The guide's commands on a real Ray: tokens for an imported teacher, a student of fewer blocks, a folder again."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.config import validate
from retort.errors import DataError
from retort.inference.synthesizer import Synthesizer
from retort.models.weights import load_codec_lm
from retort.orchestration.cluster import ray_session
from retort.orchestration.outside import run_export, run_import
from retort.orchestration.prepare.job import run_prepare
from retort.orchestration.say import say
from retort.orchestration.train.job import run_distill
from retort.run_config import DistillConfig, ExportConfig, ImportConfig, PrepareConfig
from retort.store.results import result_of
from tests.models.checkpoints import NUM_CODES, import_tree, write_checkpoint
from tests.orchestration.test_outside import saved_codec
from tests.orchestration.tiny_runs import Lines, write_ljspeech
from tests.orchestration.train_runs import training_tree

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "compress_llasa.md"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with ray_session(num_cpus=5):
        yield


def distill(root: Path, teacher: Path, data: Path) -> Path:
    """Two steps of distillation into half the blocks; returns the student's output folder."""
    tree = {
        "job": "distill", "output": str(root / "student"), "teacher": str(teacher), "data": str(data),
        "student": {
            "kind": "shape", "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48,
            "qkv_bias": True,
        },
        "method": {"kind": "cfg_distill", "guidance": {"kind": "none"}},
        "training": training_tree(steps=2, checkpoint_every=2),
    }  # fmt: skip
    run_distill(validate(tree, DistillConfig, where="test"), Lines())
    return root / "student"


def loads_in_transformers(root: Path, student: Path) -> None:
    from transformers import AutoModelForCausalLM

    tree = {"job": "export", "output": str(root / "exported"), "model": str(student)}
    target = run_export(validate(tree, ExportConfig, where="test"), Lines())["result"]
    theirs, report = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    ours = load_codec_lm(result_of(student)).model
    assert not any(report.values()), report
    assert torch.equal(theirs.model.layers[1].mlp.down_proj.weight, ours.blocks[1].feed_forward.down.weight)
    assert theirs.config.num_hidden_layers == 2


@pytest.mark.usefixtures("_ray")
def test_with_a_codec_of_retort_the_student_also_speaks(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2_tied")
    codec = {"kind": "saved", "path": str(saved_codec(tmp_path / "codec"))}
    tree = import_tree(tmp_path / "hf", tmp_path / "teacher", codec=codec)
    run_import(validate(tree, ImportConfig, where="test"), Lines())
    tokens = {
        "job": "prepare", "output": str(tmp_path / "tokens"), "codec": codec,
        "corpus": {"kind": "ljspeech", "path": str(write_ljspeech(tmp_path / "corpus", 12))},
        "text": {"kind": "saved", "path": str(tmp_path / "teacher")},
    }  # fmt: skip
    run_prepare(validate(tokens, PrepareConfig, where="test"), Lines())
    student = distill(tmp_path, tmp_path / "teacher", tmp_path / "tokens")
    loads_in_transformers(tmp_path, student)
    synthesizer = Synthesizer.open(result_of(student))
    assert list(synthesizer.voices) == ["default"]
    assert synthesizer.loaded.lineage.teacher_fingerprint == load_codec_lm(result_of(tmp_path / "teacher")).fingerprint


@pytest.mark.usefixtures("_ray")
def test_tokens_of_an_outside_codec_as_the_guide_writes_them(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2_untied")
    run_import(validate(import_tree(tmp_path / "hf", tmp_path / "teacher"), ImportConfig, where="test"), Lines())
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(GUIDE), "exec"), names)
    utterances = [
        {
            "id": f"u{i}", "text": "one two", "speaker": "s", "split": "train" if i < 8 else "test",
            "codes": torch.randint(NUM_CODES, (1, 5 + i)),
        }
        for i in range(10)
    ]  # fmt: skip
    names["write_outside_tokens"](
        tmp_path / "tokens", result_of(tmp_path / "teacher"), utterances, sample_rate=16_000, frame_rate=50.0
    )
    student = distill(tmp_path, tmp_path / "teacher", tmp_path / "tokens")
    loads_in_transformers(tmp_path, student)
    with pytest.raises(DataError, match="codec that Retort does not have"):
        say("one", student, tmp_path / "out.wav")
