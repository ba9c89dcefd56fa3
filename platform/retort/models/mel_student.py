"""A denoiser that starts from a teacher's weights."""

import torch
from torch import nn

from retort.models.mel_diffusion import MelDiffusion, MelDiffusionConfig
from retort.nn.diffusion import Prediction


def student_config(
    teacher: MelDiffusionConfig,
    *,
    prediction: Prediction | None = None,
    takes_guidance: bool = False,
    takes_interval: bool = False,
) -> MelDiffusionConfig:
    """The teacher's shape and schedule, without dropout; its inputs stay (METHODS.md, traps 21, 23)."""
    return teacher.replace(
        dropout=0.0,
        prediction=prediction or teacher.prediction,
        takes_guidance=teacher.takes_guidance or takes_guidance,
        takes_interval=teacher.takes_interval or takes_interval,
    )


def student_from_mel_teacher(teacher: MelDiffusion, config: MelDiffusionConfig) -> MelDiffusion:
    """A student of the given config with copies of the teacher's weights.

    Inputs that the teacher has not start at zero, so that the student starts as the teacher. A head of another
    prediction is another function, and starts at zero as well (METHODS.md 2.5).
    """
    student = MelDiffusion(config)
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert not unexpected, f"the student has no place for {unexpected}"
    assert all(name.startswith(("scale_in.", "until_in.")) for name in missing), f"no weights for {missing}"
    with torch.no_grad():
        for new, old in ((student.scale_in, teacher.scale_in), (student.until_in, teacher.until_in)):
            if new is not None and old is None:
                _zero(new.layers[-1])
        if config.prediction != teacher.config.prediction:
            _zero(student.patch_out)
    return student.train()


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()
