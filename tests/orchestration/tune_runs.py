"""Tiny sweeps for tests: everything real, nothing learned."""

from pathlib import Path
from typing import Any

from retort.config import validate
from retort.run_config import TuneConfig
from tests.orchestration.tiny_runs import WORDS, write_teacher, write_token_set
from tests.orchestration.train_runs import training_tree


def sweep_tree(root: Path, **changes: Any) -> dict[str, Any]:
    """A sweep over heads and learning rates in ``root / "sweep"``, on the data and teacher in ``root``."""
    output = root / "sweep"
    distill = {
        "job": "distill",
        "output": str(output / "student"),
        "teacher": str(root / "teacher"),
        "data": str(root / "data"),
        "student": {"kind": "shape", "dim": 16, "num_layers": 1, "num_heads": 1, "ffn_dim": 16},
        "init": "random",
        "method": {"kind": "cfg_distill", "guidance": {"kind": "two_term", "scale": 1.5}},
        "training": training_tree(steps=20, checkpoint_every=5),
    }
    evaluate = {
        "job": "evaluate",
        "output": str(output / "evaluation"),
        "data": str(root / "data"),
        "split": "train",
        "num_strings": 4,
        "systems": [
            {
                "name": "student",
                "kind": "model",
                "role": "student",
                "model": str(output / "student"),
                "decoding": {"kind": "codec_lm"},
            }
        ],
        "recogniser": {"kind": "pocketsphinx", "words": list(WORDS), "noise_gate_db": 35.0},
        "max_frames": 8,
        "num_resamples": 100,
        "speed": {"batch_sizes": [1, 2], "num_frames": 4, "rounds": 1, "window_s": 0.01},
        "num_samples": 0,
        "pool": {"size": 1},
    }
    tree = {
        "job": "tune",
        "output": str(output),
        "trial": [distill, evaluate],
        "space": {"student.student.num_heads": {"kind": "choice", "values": [1, 2]}},
        "search": {"kind": "grid"},
        "gate": "parameters<=1e9",
    }
    return {**tree, **changes}


def sweep(root: Path, **changes: Any) -> TuneConfig:
    return validate(sweep_tree(root, **changes), TuneConfig, where="sweep")


def write_inputs(root: Path) -> None:
    """The data and the teacher that the trials read."""
    write_teacher(root / "teacher", write_token_set(root / "data"))
