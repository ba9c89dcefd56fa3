"""How natural something sounds, as models guess it: DistillMOS and DNSMOS, whose weights are in their wheels.

Their figures are not MOS. Nobody listened: the models were fitted to votes on other sounds, and differ by more than a
listener would between sounds that are unlike those. They are paired between systems on the same texts, as the rest is;
between papers, corpora or sample rates they do not compare.
"""

import contextlib
import io
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.evaluation.hearing import RECOGNISER_RATE, audible_16k
from retort.evaluation.wheels import DISTILLMOS, DNSMOS, checked, folder_of, require

SILENCE_DBFS = -50.0
"""Below this there is nothing to judge."""

_DISTILLMOS_SHA256 = "b18b3ac60227267cfb91e5d00ce22cc7b73716fd92f269484da1446e27031a40"
_DNSMOS_SHA256 = {
    "sig_bak_ovr.onnx": "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    "model_v8.onnx": "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
}


_DNSMOS_WINDOW_S = 9.01


class NaturalnessScorer(Protocol):
    """Guesses from the sound alone. ``name`` is written beside the figures."""

    name: str

    def score(self, samples_N: Tensor, sample_rate: int) -> dict[str, float]:
        """Figures by name of metric, on a scale of 1 to 5, of mono samples [N] in -1..1; none of silence."""


class DistillMOSConfig(Config):
    """Microsoft's distilled predictor of quality (Stahl and Gamper 2025, arXiv:2502.05356), 16 kHz."""

    kind: Literal["distillmos"] = "distillmos"
    if_installed: bool = False
    """Leave it out where it is not installed, and say so, instead of refusing to begin."""

    @property
    def modules(self) -> tuple[str, ...]:
        """What must be installed for it."""
        return DISTILLMOS


class DNSMOSConfig(Config):
    """Microsoft's DNSMOS P.835 and P.808 (Reddy et al. 2022, arXiv:2110.01763), 16 kHz; made for noisy speech."""

    kind: Literal["dnsmos"] = "dnsmos"
    if_installed: bool = False
    """Leave it out where it is not installed, and say so, instead of refusing to begin."""

    @property
    def modules(self) -> tuple[str, ...]:
        """What must be installed for it."""
        return DNSMOS


NaturalnessConfig = Annotated[DistillMOSConfig | DNSMOSConfig, Field(discriminator="kind")]


def open_naturalness(
    config: DistillMOSConfig | DNSMOSConfig, *, device: torch.device | str = "cpu"
) -> NaturalnessScorer:
    """Load the scorer that ``config`` names; nothing is downloaded. DNSMOS ignores ``device``.

    Raises:
        DataError: its weights are not those of their SHA-256.
        MissingRequirementError: it is not installed.
    """
    match config:
        case DistillMOSConfig():
            return DistillMOS(device=device)
        case DNSMOSConfig():
            return DNSMOSScorer()


class DistillMOS:
    """One figure, ``distillmos``."""

    name = "distillmos-0.9.1"

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        require(DISTILLMOS)
        # The package reads its own file, with `weights_only`; only the file that was measured with is let through.
        checked(folder_of("distillmos") / "weights" / "distill_mos_v7.pt", _DISTILLMOS_SHA256)
        from distillmos import ConvTransformerSQAModel

        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
            self._model = ConvTransformerSQAModel()
        self._device = torch.device(device)
        self._model.to(self._device).eval()

    @torch.inference_mode()
    def score(self, samples_N: Tensor, sample_rate: int) -> dict[str, float]:
        """See :class:`NaturalnessScorer`."""
        audible_N = audible_16k(samples_N, sample_rate, SILENCE_DBFS)
        if audible_N is None:
            return {}
        return {"distillmos": float(self._model(audible_N[None].to(self._device)))}


class DNSMOSScorer:
    """P.835's overall, signal and background, and P.808's overall."""

    name = "dnsmos-p835-p808"
    _NAMES: ClassVar = {
        "dnsmos": "ovrl_mos",
        "dnsmos_signal": "sig_mos",
        "dnsmos_background": "bak_mos",
        "dnsmos_p808": "p808_mos",
    }

    def __init__(self) -> None:
        require(DNSMOS)
        folder = folder_of("speechmos") / "dnsmos_models"
        primary, p808 = (str(checked(folder / name, sha256)) for name, sha256 in _DNSMOS_SHA256.items())
        import onnxruntime
        from speechmos import dnsmos

        self._model: Any = dnsmos.DNSMOS(primary, p808)
        # By itself the runtime takes every core, also where Ray has given this process one.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._model.onnx_sess = onnxruntime.InferenceSession(primary, options)
        self._model.p808_onnx_sess = onnxruntime.InferenceSession(p808, options)

    def score(self, samples_N: Tensor, sample_rate: int) -> dict[str, float]:
        """See :class:`NaturalnessScorer`."""
        audible_N = audible_16k(samples_N, sample_rate, SILENCE_DBFS)
        if audible_N is None:
            return {}
        # The package doubles a short sound until it is long enough, and then judges up to nine windows of the same
        # loop; one window of it says as much.
        least = int(_DNSMOS_WINDOW_S * RECOGNISER_RATE)
        looped_N = audible_N if audible_N.numel() >= least else audible_N.repeat(-(-least // audible_N.numel()))[:least]
        sound = np.ascontiguousarray(looped_N.clamp(-1.0, 1.0).numpy())
        found = self._model(sound, RECOGNISER_RATE, False)
        return {name: float(found[theirs]) for name, theirs in self._NAMES.items()}
