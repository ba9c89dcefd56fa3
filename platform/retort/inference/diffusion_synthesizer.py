"""Text to sound through a denoiser of mels: codes of the codec LM, their latents, the denoiser's mel, Griffin-Lim.

A trained denoiser's folder is complete: beside its ``config.json`` and ``model.safetensors``, ``lm/`` is the whole
folder of the codec LM whose latents it reads, with codec, text front-end and voices (METHODS.md 2.2).
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from retort.audio.codec import mel_codec
from retort.audio.griffin_lim import GriffinLimStream, griffin_lim, whole_mel_stream
from retort.audio.mel_rvq import with_soft_floor, without_soft_floor
from retort.data.prompts import PROMPT_MAX_FRAMES, crop_prompt
from retort.data.tokens import refuse_mismatch
from retort.errors import ConfigError, DataError
from retort.inference.backends import DecodePrecision
from retort.inference.decoding import Decoding, MelDiffusionDecoding
from retort.inference.diffusion_sampling import DDIMSolver, IntervalSolver, Solver
from retort.inference.mel_making import MelMaker, MelPlan
from retort.inference.speaker import Facts, Request, Spoken, Timing
from retort.inference.synthesizer import Synthesizer
from retort.inference.timing import time_codes, wait_for
from retort.models.codec_lm import count_parameters
from retort.models.latents import latents_of
from retort.models.weights import LoadedMelDiffusion, load_mel_diffusion
from retort.nn.diffusion_guidance import ConstantGuidance, RampedGuidance

LM = "lm"
"""The codec LM's folder within the denoiser's."""
_PLAIN_STEPS, _PLAIN_INTERVALS = 80, 4
"""Steps where the lineage leaves them open: of a teacher, and of a student of intervals."""
_ROWS_ON_A_GPU = 32
_TIMED_UTTERANCES = 2
"""Griffin-Lim takes one utterance after the other, so a few stand for all."""


class DiffusionSynthesizer:
    """Speaks with one denoiser and its codec LM.

    On a CPU the latents and mel of an utterance are computed by themselves, so that they are the same bits in any
    company; a batch would not be faster. On a GPU they are computed together with others and may differ from those by
    rounding, though the codes, the noise and the length are the same.
    """

    def __init__(self, loaded: LoadedMelDiffusion, lm: Synthesizer) -> None:
        self.loaded, self.lm = loaded, lm
        self.codec = mel_codec(lm.codec, who="the codec LM")
        self.maker = MelMaker(loaded.model.to(lm.device).eval(), lm.dtype)

    @classmethod
    def open(cls, folder: Path, *, precision: DecodePrecision = "fp32", device: str = "cpu") -> "DiffusionSynthesizer":
        """Open a model folder.

        Raises:
            ConfigError: the codec has no log-mel of its own.
            DataError: a part is missing, or the codec LM is not the one whose latents the denoiser reads; both are
                named.
        """
        loaded = load_mel_diffusion(folder)
        if not (folder / LM).is_dir():
            raise DataError(f"{folder} has no {LM}/, the codec LM that it speaks through; train it with this version")
        lm = Synthesizer.open(folder / LM, precision=precision, device=device)
        cure = "restore the folder that `retort pretrain` or `retort distill` wrote"
        needed, config = loaded.lineage.lm_fingerprint, loaded.model.config
        refuse_mismatch("codec LM", "the denoiser", needed, f"its {LM} folder", lm.loaded.fingerprint, cure)
        made = cls(loaded, lm)
        wanted = f"latents of {lm.loaded.model.config.dim}, {made.codec.config.mel.num_mels} mels"
        given = f"latents of {config.latent_dim}, {config.num_mels} mels"
        refuse_mismatch("size of latents or mels", "the denoiser", given, f"its {LM} folder", wanted, cure)
        return made

    @property
    def facts(self) -> Facts:
        """What it is: both networks together."""
        own, writer = self.loaded.model, self.lm.loaded.model
        parameters = count_parameters(writer) + _size(own)
        num_layers = writer.config.num_layers + own.config.num_layers
        return Facts(self.loaded.fingerprint, "mel_diffusion", self.loaded.lineage, parameters, num_layers)

    @property
    def guidance_scales(self) -> tuple[float, ...] | None:
        """See :class:`~retort.inference.speaker.Abilities`; of a student that takes the scale, the two ends."""
        lineage = self.loaded.lineage
        if lineage.scale_range is not None:
            return lineage.scale_range
        return None if lineage.method == "mel_pretrain" and lineage.trained_drops else ()

    def decoding(self, wanted: Decoding | None) -> MelDiffusionDecoding:
        """How it decodes when ``wanted`` is asked for, its solver filled in; None is unguided.

        Raises:
            ConfigError: it is of another family, or its guidance, solver or steps are not valid for these weights.
        """
        match wanted:
            case None:
                given = MelDiffusionDecoding()
            case MelDiffusionDecoding():
                given = wanted
            case _:
                raise ConfigError(f"this model is a mel_diffusion, its decoding was given as kind: {wanted.kind}")
        lineage, solver = self.loaded.lineage, given.solver or self._own_solver()
        lineage.check_guidance(given.guidance)
        lineage.check_steps(solver.kind, solver.num_steps)
        if (solver.kind == "interval") != self.loaded.model.config.takes_interval:
            raise ConfigError(
                f"solver {solver.kind} does not fit: only students of intervals, and these always, take solver interval"
            )
        return MelDiffusionDecoding(lm=self.lm.decoding(given.lm), solver=solver, guidance=given.guidance)

    def _own_solver(self) -> Solver:
        lineage = self.loaded.lineage
        if lineage.solver == "interval":
            return IntervalSolver(num_steps=lineage.num_steps or _PLAIN_INTERVALS)
        return DDIMSolver(num_steps=lineage.num_steps or _PLAIN_STEPS)

    def decoding_at(self, guidance_scale: float) -> MelDiffusionDecoding:
        """Plain decoding at a scale of the denoiser: as an input where it takes one, else ramped as in TorToiSe.

        Raises:
            ConfigError: see :meth:`decoding`.
        """
        if guidance_scale == 1.0:
            return self.decoding(None)
        if self.loaded.model.config.takes_guidance:
            return self.decoding(MelDiffusionDecoding(guidance=ConstantGuidance(scale=guidance_scale)))
        return self.decoding(MelDiffusionDecoding(guidance=RampedGuidance(scale=guidance_scale)))

    @property
    def rows_at_once(self) -> int:
        """Utterances whose latents and mels are computed together."""
        return _ROWS_ON_A_GPU if self.lm.device.type == "cuda" else 1

    @torch.no_grad()
    def plans(
        self, requests: Sequence[Request], codes: Sequence[Tensor], decoding: MelDiffusionDecoding
    ) -> list[MelPlan]:
        """What the mels of finished codes [K, T], none of them empty, are made from."""
        plans: list[MelPlan] = []
        for begin in range(0, len(requests), self.rows_at_once):
            some, theirs = requests[begin : begin + self.rows_at_once], codes[begin : begin + self.rows_at_once]
            with torch.autocast(self.lm.device.type, self.lm.dtype, enabled=self.lm.dtype != torch.float32):
                latents = latents_of(self.lm.loaded.model, self.lm.conditions(some, decoding.lm), theirs)
            for request, codes_KT, own_LD in zip(some, theirs, latents, strict=True):
                frames = codes_KT.shape[1] * self.codec.config.frames_per_token
                plans.append(MelPlan(own_LD.float(), self.voice_mel(self.lm.prompt(request)), frames, request.seed))
        return plans

    def voice_mel(self, prompt_KP: Tensor) -> Tensor | None:
        """The denoiser's voice [P, M] of the codec LM's prompt, soft-floored and no longer than in mel sets.

        None where there is no prompt.
        """
        if not prompt_KP.shape[1]:
            return None
        mel_MP = self.codec.decode_log_mel(crop_prompt(prompt_KP, 0.0, PROMPT_MAX_FRAMES))
        return with_soft_floor(mel_MP.T, self.codec.config)

    def make(self, plans: Sequence[MelPlan], decoding: MelDiffusionDecoding) -> list[Tensor]:
        """Log-mels [T, M] with the soft floor, in fp32 on the CPU."""
        made: list[Tensor] = []
        for begin in range(0, len(plans), self.rows_at_once):
            made += self.maker.make(plans[begin : begin + self.rows_at_once], decoding.guidance, solver_of(decoding))
        return [self.maker.model.denormalise(x_TM) for x_TM in made]

    def sound(self, mel_TM: Tensor) -> Tensor:
        """Samples [N] of a log-mel with the soft floor; of none, where it is not numbers."""
        if not torch.isfinite(mel_TM).all():
            return torch.zeros(0)
        config = self.codec.config
        iterations = config.griffin_lim_iterations
        return griffin_lim(without_soft_floor(mel_TM, config).T, config.mel, num_iterations=iterations)

    def sound_stream(self) -> GriffinLimStream:
        """Gives the samples of :meth:`sound` little by little, of frames without the soft floor."""
        config = self.codec.config
        return whole_mel_stream(config.mel, num_iterations=config.griffin_lim_iterations)

    def speak(self, requests: Sequence[Request], decoding: MelDiffusionDecoding, *, max_frames: int) -> list[Spoken]:
        """Synthesise a batch, decoded as :meth:`decoding` allows; what has no frame has no mel either.

        Raises:
            ConfigError: a voice is unknown or of another space.
            DataError: a text has nothing to say.
        """
        decoded = self.lm.decode(requests, decoding.lm, max_frames=max_frames)
        said = [index for index, item in enumerate(decoded) if item.codes_KT.shape[1]]
        plans = self.plans([requests[i] for i in said], [decoded[i].codes_KT for i in said], decoding)
        mels = dict(zip(said, self.make(plans, decoding), strict=True))
        return [
            Spoken(
                self.sound(mels[index]) if index in mels else torch.zeros(0),
                self.codec.sample_rate,
                item.has_eos,
                item.codes_KT,
                mels.get(index),
            )
            for index, item in enumerate(decoded)
        ]

    def time(self, requests: Sequence[Request], decoding: MelDiffusionDecoding, *, num_frames: int) -> Timing:
        """Say ``num_frames`` codec frames of every request.

        Its figures: ``nfe`` are passes of the denoiser for an utterance, ``diffusion_seconds`` what the denoiser takes
        for one, in such a batch, ``diffusion_rtf`` that over its length. Latents count as the codec LM's work.
        """
        codes_s, codes = time_codes(self.lm, requests, decoding.lm, num_frames=num_frames)
        begin = time.perf_counter()
        plans = self.plans(requests, codes, decoding)
        wait_for(self.lm.device)
        lm_s = codes_s + time.perf_counter() - begin
        begin = time.perf_counter()
        mels = self.make(plans, decoding)
        diffusion_s = time.perf_counter() - begin
        begin = time.perf_counter()
        few = mels[:_TIMED_UTTERANCES]
        for mel_TM in few:
            self.sound(mel_TM)
        sound_s = time.perf_counter() - begin
        share = len(mels) / len(few)
        # By frames: a mel that is not numbers has no sound, yet it took its time.
        audio_s = sum(map(len, few)) * self.codec.config.mel.hop_samples * share / self.codec.sample_rate
        return Timing(
            compute_s=lm_s + diffusion_s,
            sound_s=sound_s * share,
            audio_s=audio_s,
            figures={
                "nfe": self.maker.num_evaluations(decoding.guidance, solver_of(decoding)),
                "diffusion_seconds": diffusion_s / len(mels),
                "diffusion_rtf": diffusion_s / audio_s,
            },
        )


def solver_of(decoding: MelDiffusionDecoding) -> Solver:
    """Of a decoding that :meth:`DiffusionSynthesizer.decoding` gave."""
    assert decoding.solver is not None, "not checked for a model"
    return decoding.solver


def _size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
