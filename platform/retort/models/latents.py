"""The codec LM's latents: one vector per codec frame, which the diffusion model of mels is conditioned on.

They are states after the final norm on a teacher-forced pass over finished codes under the full condition, as in
TorToiSe (METHODS.md 2.2): guidance combines logits, and has no states of its own.

Which state stands for a frame follows from the delays. Codebook k of frame t is predicted in step ``t + delays[k]`` and
is an input of the column after it, so the first column that has seen all codebooks of frame t is
``t + max(delays) + 1``. By then it has also seen codebook k of the frames up to ``t + max(delays) - delays[k]``, and
nothing later. The end of speech is an input where a step would have given it, after codebook 0 of the last frame.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.conditions import Conditions
from retort.nn.delays import apply_delays


def latents_of(model: CodecLM, conditions: Conditions, codes: Sequence[Tensor]) -> list[Tensor]:
    """Latents [T_b, D] in fp32 of each row's codes [K, T_b], which do not depend on the rows beside it.

    Args:
        model: in evaluation mode.
        conditions: of the rows, none of them dropped.
        codes: finished codes without delay.
    """
    inputs_BKS = latent_inputs(model.config, codes).to(conditions.text_BL.device)
    states_BSD = model.states(conditions, inputs_BKS)
    first = max(model.config.codebook_delays) + 1
    return [state[first : first + code.shape[1]].float() for state, code in zip(states_BSD, codes, strict=True)]


def latent_inputs(config: CodecLMConfig, codes: Sequence[Tensor]) -> Tensor:
    """Input columns [B, K, S]: those of a teacher-forced pass, and one more where a delay asks for it."""
    lengths_B = torch.tensor([code.shape[1] for code in codes])
    T = int(lengths_B.max())
    padded = torch.full((len(codes), config.num_codebooks, T + 1), config.fill, dtype=torch.int64)
    for b, code_KT in enumerate(codes):
        padded[b, :, : code_KT.shape[1]] = code_KT
    delayed = apply_delays(padded, config.codebook_delays, fill=config.fill)
    delayed[torch.arange(len(codes)), 0, lengths_B] = config.eos
    start = torch.full_like(delayed[:, :, :1], config.fill)
    return torch.cat([start, delayed[:, :, : T + max(config.codebook_delays)]], dim=2)
