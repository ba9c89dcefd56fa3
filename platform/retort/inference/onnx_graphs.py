"""A zero-shot model and a vocoder as ONNX graphs, one utterance at a time and of any length.

The model is two graphs, because how long the mel is to be is only known after the first: ``plan`` says what is said of
each phone and for how many frames, ``render`` makes the mel. The vocoder's graph is its networks alone: ONNX has no
complex numbers, and its Fourier transform is slower than NumPy's, so what comes after the networks is in
:mod:`retort.inference.bundle.sound`.
"""

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from retort.audio.pitch import LOWEST_HZ
from retort.errors import MissingRequirementError
from retort.models.vocoder import Vocoder
from retort.models.zero_shot.model import ZeroShot
from retort.nn.phone_conditions import VoicePrompt

PLAN_FILE, RENDER_FILE, VOCODER_FILE = "plan.onnx", "render.onnx", "vocoder.onnx"
INSTALL = "pip install 'retort[export]'"
_OPSET = 17
_PHONES, _PROMPT, _FRAMES = 7, 9, 11
"""Sizes of what the graphs are traced on; others than one, and than each other, so that none becomes a constant."""


@dataclass(frozen=True)
class _Traced:
    """What a graph is made from.

    Attributes:
        module: computes it.
        given: its inputs by name.
        outputs: their names.
        sizes: of inputs and outputs by name, the axes that may have any size, by what the size is called.
    """

    module: nn.Module
    given: Mapping[str, Tensor]
    outputs: Sequence[str]
    sizes: Mapping[str, Mapping[int, str]]


class PlanGraph(nn.Module):
    """See :meth:`retort.models.zero_shot.model.ZeroShot.plan`; of one utterance, whose prompt is valid throughout."""

    def __init__(self, model: ZeroShot) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, phones_BP: Tensor, prompt_BSM: Tensor, timbre_BE: Tensor, noise_BPC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adapted content [1, D, P], scaled timbre [1, E] and ln(1 + frames) of each phone [1, P].

        Args:
            phones_BP: numbers of the phones, int64.
            prompt_BSM: natural-log mel.
            timbre_BE: of the voice.
            noise_BPC: standard normal, times the noise scale.
        """
        mask_BS = prompt_BSM[..., 0] == prompt_BSM[..., 0]
        voice = VoicePrompt(prompt_BSM, mask_BS, timbre_BE)
        adapted_BDP, scaled_BE, predicted = self.model.plan(phones_BP, voice, noise_BPC)
        return adapted_BDP, scaled_BE, self.model.log_frames(predicted.log_frames_BP)


class RenderGraph(nn.Module):
    """See :meth:`retort.models.zero_shot.model.ZeroShot.render`; of one utterance."""

    def __init__(self, model: ZeroShot) -> None:
        super().__init__()
        self.model = model

    def forward(self, adapted_BDP: Tensor, timbre_BE: Tensor, frames_BP: Tensor, mask_BT: Tensor) -> Tensor:
        """Natural-log mel [1, T, M]; ``mask_BT`` is True throughout, of the sum of ``frames_BP``."""
        return self.model.render(adapted_BDP, timbre_BE, frames_BP, mask_BT)


class VocoderGraph(nn.Module):
    """The networks of a vocoder: what its head says, and with a harmonic source the pitch."""

    def __init__(self, vocoder: Vocoder) -> None:
        super().__init__()
        self.vocoder = vocoder

    def forward(self, mel_BMT: Tensor) -> tuple[Tensor, ...]:
        """What the head says [1, T, O]; of a harmonic source Hz and voicing [1, T + 2 * overhang], too.

        Args:
            mel_BMT: log-mels [1, M, T + 2 * reach], those of ``reach`` frames before and after included.
        """
        head_BTO = self.vocoder.said(self.vocoder.trunk(self.vocoder.normalised(mel_BMT)))
        if self.vocoder.pitch is None:
            return (head_BTO,)
        found = self.vocoder.read_pitch(mel_BMT)
        # ONNX has no power of two.
        pitch_BT = LOWEST_HZ * torch.exp(math.log(2.0) * found.octaves())
        return head_BTO, pitch_BT, found.voiced_BT.sigmoid()


def export_zero_shot(model: ZeroShot, folder: Path) -> None:
    """Write ``plan.onnx`` and ``render.onnx`` of a model in evaluation mode on the CPU.

    Raises:
        MissingRequirementError: ``onnx`` is not installed.
    """
    config = model.config
    phones, prompt, content = {1: "phones"}, {1: "prompt_frames"}, {2: "phones"}
    plan = _Traced(
        PlanGraph(model),
        {
            "phones": torch.ones(1, _PHONES, dtype=torch.int64),
            "prompt": torch.zeros(1, _PROMPT, config.num_mels),
            "timbre": torch.zeros(1, config.timbre_dim),
            "noise": torch.zeros(1, _PHONES, config.latent_dim),
        },
        ("adapted", "scaled_timbre", "log_frames"),
        {"phones": phones, "prompt": prompt, "noise": phones, "adapted": content, "log_frames": phones},
    )
    frames_1P = torch.full((1, _PHONES), 1)
    frames_1P[0, 0] += _FRAMES - _PHONES
    render = _Traced(
        RenderGraph(model),
        {
            "adapted": torch.zeros(1, config.dim, _PHONES),
            "scaled_timbre": torch.zeros(1, config.timbre_dim),
            "frames": frames_1P,
            "mask": torch.ones(1, _FRAMES, dtype=torch.bool),
        },
        ("mel",),
        {"adapted": content, "frames": phones, "mask": {1: "frames"}, "mel": {1: "frames"}},
    )
    _export(plan, folder / PLAN_FILE)
    _export(render, folder / RENDER_FILE)


def export_vocoder(vocoder: Vocoder, folder: Path) -> None:
    """Write ``vocoder.onnx`` of a vocoder in evaluation mode on the CPU.

    Raises:
        MissingRequirementError: ``onnx`` is not installed.
    """
    outputs = ("head", "pitch", "voiced") if vocoder.config.source == "harmonic" else ("head",)
    mel_1MT = torch.zeros(1, vocoder.config.mel.num_mels, _FRAMES + 2 * vocoder.reach)
    sizes = {"mel": {2: "padded_frames"}, **{name: {1: f"{name}_frames"} for name in outputs}}
    _export(_Traced(VocoderGraph(vocoder), {"mel": mel_1MT}, outputs, sizes), folder / VOCODER_FILE)


@torch.no_grad()
def _export(traced: _Traced, path: Path) -> None:
    if importlib.util.find_spec("onnx") is None:
        raise MissingRequirementError(f"onnx is not installed, by which torch writes graphs; {INSTALL}")
    with warnings.catch_warnings():
        # What depends on a length here is the choice of an attention kernel, and torch's own traced sizes.
        warnings.simplefilter("ignore")
        # The exporter by tracing needs nothing but onnx; the other one does not take sizes that data decide.
        torch.onnx.export(
            # As a whole: the exporter gives the mode of the outermost module back to all that is in it.
            traced.module.eval(),
            tuple(traced.given.values()),
            str(path),
            input_names=list(traced.given),
            output_names=list(traced.outputs),
            dynamic_axes={name: dict(axes) for name, axes in traced.sizes.items()},
            opset_version=_OPSET,
            dynamo=False,
        )
