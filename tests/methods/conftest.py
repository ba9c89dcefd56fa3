"""The toy teacher of the methods on denoisers, trained once."""

import copy

import pytest

from retort.methods import guided_distill
from retort.methods.guided_distill import GuidedDistillConfig
from retort.models.mel_diffusion import MelDiffusion
from tests.methods.mel_toys import GUIDANCE, train, trained_teacher

TAUGHT = GuidedDistillConfig(guidance=GUIDANCE, num_steps=8, largest_distance=0.03)


@pytest.fixture(scope="session")
def toy_teacher() -> MelDiffusion:
    """May be guided."""
    return trained_teacher()


@pytest.fixture(scope="session")
def guided_student(toy_teacher: MelDiffusion) -> MelDiffusion:
    """Has the toy's guidance baked in."""
    teacher, objective = guided_distill.build(copy.deepcopy(toy_teacher), TAUGHT, seed=3)
    train(objective, teacher, 200, rate=3e-3, seed=4)
    return objective.student
