"""A codec LM with the token set's prompts: its conditions and latents for given rows, and new sequences from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from retort.audio.codec import open_codec
from retort.data.batches import CodebookLayout, conditions_for
from retort.data.prompts import PROMPT_MAX_FRAMES, Prompt, PromptsById, crop_prompt
from retort.data.tokens import TokenRow, TokenSet
from retort.data.utterance import Reject
from retort.errors import DataError
from retort.evaluation.asr import open_recogniser
from retort.evaluation.hearing import hear
from retort.evaluation.stability import StabilityConfig, is_loop
from retort.evaluation.wer import score_text, word_errors
from retort.inference.decode import Decoded, Decoder
from retort.inference.runaway import longest_repeat
from retort.inference.sampling import SamplerConfig
from retort.models.codec_lm import CodecLM
from retort.models.latents import latents_of
from retort.nn.conditions import Conditions
from retort.nn.guidance import GuidanceConfig
from retort.nn.precision import Precision
from retort.nn.random import seed_of
from retort.orchestration.generate.plan import Ask
from retort.run_config import FilterConfig
from retort.text.front_end import open_text_front_end


class PromptedModel:
    """A codec LM, and the training rows of its token set that speaker prompts are cut from, by id.

    Args:
        model: on its device.
        data: the token set's result folder.
        prompt_max_frames: longest prompt.
    """

    def __init__(self, model: CodecLM, data: Path, prompt_max_frames: int = PROMPT_MAX_FRAMES) -> None:
        self.model, self.data, self.prompt_max_frames = model, data, prompt_max_frames
        self.layout = CodebookLayout(model.config.codebook_size, model.config.codebook_delays)
        self.train = TokenSet.open(data).split("train")
        self.prompts = PromptsById(self.train.column("id"), self.train.column("speaker"))

    def crops(self, prompts: Sequence[Prompt | None]) -> list[Tensor | None]:
        """The codes [K, P] of prompts."""
        longest = self.prompt_max_frames
        return [None if p is None else crop_prompt(self.train[p.index].codes_KT, p.position, longest) for p in prompts]

    def conditions(self, texts: Sequence[Sequence[int]], prompts: Sequence[Prompt | None]) -> Conditions:
        """Full conditions of a batch, on the model's device."""
        given = conditions_for(texts, self.crops(prompts), self.layout.num_codebooks)
        return given.to(self.model.heads.weight.device)

    def latents(self, rows: Sequence[TokenRow]) -> list[Tensor]:
        """Latents [T, D] of each row's codes, in fp32."""
        prompts = [self.prompts.choose(row.id, row.speaker) for row in rows]
        given = self.conditions([row.text_ids for row in rows], prompts)
        return latents_of(self.model, given, [row.codes_KT for row in rows])


@dataclass(frozen=True)
class Sampling:
    """How sequences are sampled, and which of them are kept."""

    guidance: GuidanceConfig
    sampler: SamplerConfig
    max_frames: int
    filters: FilterConfig
    precision: Precision
    seed: int


class SequenceSampler:
    """Samples the sequences that are asked for; each depends on its id and the seed, not on its batch."""

    def __init__(self, prompted: PromptedModel, sampling: Sampling) -> None:
        self.prompted, self.sampling = prompted, sampling
        self.frame_rate = prompted.train.description.frame_rate
        self.decoder = Decoder(prompted.model, precision=sampling.precision)
        self.front_end = open_text_front_end(prompted.data / "text")
        self.filter = SequenceFilter(sampling.filters, self.frame_rate, prompted.data / "codec")

    def sample(self, asks: Sequence[Ask], *, keep_top_k: int = 0) -> tuple[list[TokenRow], list[Decoded], list[Reject]]:
        """The sequences that satisfy the filters, as training rows and as they were decoded, and the others."""
        rejects: list[Reject] = []
        spoken: list[tuple[Ask, tuple[int, ...]]] = []
        for ask in asks:
            try:
                spoken.append((ask, tuple(self.front_end.encode(ask.text))))
            except DataError as error:
                rejects.append(Reject(ask.id, "unspeakable_text", str(error), "sampled"))
        rows: list[TokenRow] = []
        kept: list[Decoded] = []
        for (ask, ids), decoded in zip(spoken, self._decode(spoken, keep_top_k), strict=True):
            fault = self.filter.fault(ask.text, decoded)
            if fault is not None:
                rejects.append(Reject(ask.id, fault[0], fault[1], "sampled"))
                continue
            duration_s = decoded.codes_KT.shape[1] / self.frame_rate
            rows.append(TokenRow(ask.id, ask.text, ids, ask.speaker, "train", decoded.codes_KT, duration_s))
            kept.append(decoded)
        return rows, kept, rejects

    def seed_of(self, row_id: str) -> int:
        """The seed of one sequence."""
        return seed_of(self.sampling.seed, row_id)

    def _decode(self, spoken: Sequence[tuple[Ask, tuple[int, ...]]], keep_top_k: int) -> list[Decoded]:
        if not spoken:
            return []
        prompts = [self.prompted.prompts.choose(ask.id, ask.speaker) for ask, _ in spoken]
        return self.decoder.decode(
            self.prompted.conditions([ids for _, ids in spoken], prompts),
            guidance=self.sampling.guidance.build(),
            sampler=self.sampling.sampler,
            seeds=[self.seed_of(ask.id) for ask, _ in spoken],
            max_frames=self.sampling.max_frames,
            keep_top_k=keep_top_k,
        )


class SequenceFilter:
    """Says what is wrong with a sampled sequence, by the rules and the names of the evaluation.

    Args:
        filters: the rules.
        frame_rate: codec frames per second.
        codec: folder of the codec, for the rule that listens.
    """

    def __init__(self, filters: FilterConfig, frame_rate: float, codec: Path) -> None:
        self.limits: StabilityConfig = filters.stability
        self.frame_rate, self.max_wer = frame_rate, filters.max_wer
        recogniser = filters.recogniser
        self._recogniser = None if recogniser is None else open_recogniser(recogniser)
        self._codec = None if recogniser is None else open_codec(codec)

    def fault(self, text: str, decoded: Decoded) -> tuple[str, str] | None:
        """Code and detail of the first rule that is broken; None where all hold."""
        limits, T = self.limits, decoded.codes_KT.shape[1]
        duration_s, words = T / self.frame_rate, max(1, len(score_text(text).split()))
        length = f"{duration_s:.2f} s for {words} words"
        if not decoded.has_eos:
            return "no_eos", f"no end of speech within {T} frames"
        if T == 0 or duration_s < limits.min_s_per_word * words:
            return "too_short", length
        if duration_s > limits.max_s_per_word * words + limits.pause_s:
            return "too_long", length
        repeat = longest_repeat(decoded.codes_KT, max_period=limits.max_repeat_period)
        if is_loop(repeat, T, limits):
            return "repeat", f"{repeat.steps} of {T} frames repeat with period {repeat.period}"
        return self._misheard(text, decoded)

    def _misheard(self, text: str, decoded: Decoded) -> tuple[str, str] | None:
        if self._recogniser is None or self._codec is None or self.max_wer is None:
            return None
        try:
            heard = hear(self._recogniser, self._codec.decode(decoded.codes_KT), self._codec.sample_rate)
        except DataError as error:
            return "error", str(error)
        wer = word_errors(text, heard).wer
        return ("wer", f"WER {wer:.2f}: heard {heard!r}") if wer > self.max_wer else None
