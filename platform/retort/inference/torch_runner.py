"""The runner in torch: for GPUs, where the whole step is one CUDA graph, and for CPUs without a C compiler.

Everything that a step needs lies on the device: keys and values, each slot's seed, step, limits and last tokens. So a
step is a fixed sequence of kernels that the graph replays, and what comes back is one small array of tokens.
"""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from retort.inference.runner import BROKEN, Plan
from retort.inference.sampling import NEVER, cut_tails, draw
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.transformer import Block, LayerCache, apply_rotary, leave_out_cudnn_attention

_SHORTEST = 256
"""Columns that a step of all slots looks at, at least. Where that is too few, it looks at twice as many, and so on: one
graph for each length, and keys that nobody has filled are not read."""
_ALIGNED = 16
"""Columns are a multiple of it, because attention would copy a mask of any other length in every layer."""
_CAPTURING = threading.Lock()
"""One graph is captured at a time, whoever captures it."""


class TorchRunner:
    """A :class:`~retort.inference.runner.Runner` in torch.

    On a GPU all slots take part in every step. So its shapes depend on nothing but how far the longest chosen utterance
    has come, rounded up, with a graph for each such length. Columns beyond an utterance's own add exact zeros to its
    attention, so its bits should not depend on the others' lengths; on a GPU that has not been tried. On a CPU only the
    chosen slots take part, and the matrix products may round differently in another batch.

    Args:
        model: the weights; they stay where they are, in their precision.
        max_slots: utterances at once.
        max_conditions: rows that guidance may add up to.
        max_columns: longest condition and audio together.
        is_static: let all slots take part in every step, as a graph needs it; ``None`` means wherever there is a GPU.
        use_graph: capture the step in a CUDA graph; ``None`` means wherever there is a GPU.
    """

    def __init__(
        self,
        model: CodecLM,
        *,
        max_slots: int,
        max_conditions: int,
        max_columns: int,
        is_static: bool | None = None,
        use_graph: bool | None = None,
    ) -> None:
        self.model, self.max_slots, self.max_conditions = model, max_slots, max_conditions
        self.max_columns = max_columns = -(-max_columns // _ALIGNED) * _ALIGNED
        weight = model.heads.weight
        self.device, self.dtype = weight.device, weight.dtype
        on_gpu = self.device.type == "cuda"
        self.is_static = on_gpu if is_static is None else is_static
        self._use_graph = on_gpu if use_graph is None else use_graph
        if on_gpu:
            leave_out_cudnn_attention()
        self._graphs: dict[tuple[bool, bool, int], torch.cuda.CUDAGraph] = {}
        self._caches = model.new_caches(max_slots * max_conditions, max_columns)
        cosine, sine = model.rotary(max_columns, self.device)
        self._cosine, self._sine = cosine.to(self.dtype), sine.to(self.dtype)
        self._state = _State(model.config, max_slots, max_conditions, self.device)
        self._delays_K = torch.tensor(model.config.codebook_delays, device=self.device)
        self._is_cut, self._filled = [False] * max_slots, [0] * max_slots
        self._broken: set[int] = set()
        self._chosen: list[int] = []
        shape = (max_slots, model.config.num_codebooks)
        self._tokens_NK = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self._host_NK = torch.zeros(shape, dtype=torch.int64, pin_memory=on_gpu)
        self._arrived = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        self._guided_NKV = torch.zeros(
            max_slots, model.config.num_codebooks, model.config.output_size, device=self.device
        )

    @property
    def config(self) -> CodecLMConfig:
        """Shape of the model."""
        return self.model.config

    @torch.inference_mode()
    def admit(self, slot: int, plan: Plan) -> None:
        """Run the conditions of a plan; see :meth:`Runner.admit`."""
        if slot in self._broken:
            self._forget(slot)
        for index, prefix_CD in enumerate(plan.prefixes):
            row = slot * self.max_conditions + index
            x_1CD = prefix_CD.to(self.device, self.dtype)[None]
            positions_1C = torch.arange(x_1CD.shape[1], device=self.device)[None]
            self._forward(x_1CD, torch.tensor([row], device=self.device), positions_1C, x_1CD.shape[1])
        self._state.admit(slot, plan)
        self._is_cut[slot], self._filled[slot] = plan.sampler.cuts, plan.num_columns

    @torch.inference_mode()
    def step(self, slots: Sequence[int], *, keep_guided: bool = False) -> tuple[Tensor, Tensor | None]:
        """Advance the chosen slots by one step; see :meth:`Runner.step`."""
        cut, longest = any(self._is_cut[slot] for slot in slots), max(self._filled[slot] for slot in slots) + 1
        for slot in slots:
            self._filled[slot] += 1
        if not self.is_static:
            tokens_NK, guided = self._advance(torch.tensor(list(slots)), cut, keep_guided, longest)
        else:
            self._choose(list(slots))
            self._run_everyone(cut, keep_guided, self._covering(longest))
            guided = self._guided_NKV[list(slots)].cpu() if keep_guided else None
            tokens_NK = self._fetch_tokens()[list(slots)]
        self._broken.update(slots[i] for i in (tokens_NK[:, 0] == BROKEN).nonzero()[:, 0].tolist())
        return tokens_NK, guided

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture the graphs that requests may need, so that none of them waits for one."""
        longest = self._covering(1)
        while self._use_graph:
            for cut in (False, True):
                self._graph(cut, keep_guided=False, longest=longest)
            if longest == self.max_columns:
                return
            longest = self._covering(longest + 1)

    def _choose(self, slots: list[int]) -> None:
        if slots != self._chosen:
            everyone = torch.zeros(self.max_slots, dtype=torch.bool)
            everyone[slots] = True
            self._state.active_N.copy_(everyone)
            self._chosen = slots

    def _fetch_tokens(self) -> Tensor:
        """Everybody's tokens: one copy, which the host waits for, and for nothing else."""
        self._host_NK.copy_(self._tokens_NK, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()
            self._arrived.synchronize()
        return self._host_NK

    def _covering(self, columns: int) -> int:
        """The length at which a step of all slots covers so many columns."""
        longest = _SHORTEST
        while longest < columns:
            longest *= 2
        return min(longest, self.max_columns)

    def _forget(self, slot: int) -> None:
        """Unseen columns have no weight, but a value there that is not a number would still spoil the sum.

        Not before somebody enters: an idle slot computes on, and may leave such values again.
        """
        self._broken.remove(slot)
        first = slot * self.max_conditions
        for cache in self._caches:
            for kept in (cache.keys_BHSD, cache.values_BHSD):
                kept[first : first + self.max_conditions].zero_()

    def _run_everyone(self, cut: bool, keep_guided: bool, longest: int) -> None:
        """One step of all slots, through a graph where one is used; idle slots compute, and keep their state."""
        if self._use_graph:
            self._graph(cut, keep_guided, longest).replay()
        else:
            self._static_step(cut, keep_guided, longest)

    def _graph(self, cut: bool, keep_guided: bool, longest: int) -> torch.cuda.CUDAGraph:
        key = (cut, keep_guided, longest)
        if key not in self._graphs:
            with _CAPTURING:
                self._graphs[key] = self._capture(cut, keep_guided, longest)
        return self._graphs[key]

    def _capture(self, cut: bool, keep_guided: bool, longest: int) -> torch.cuda.CUDAGraph:
        kept = self._state.clone()
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # Libraries choose their kernels and allocate in the first runs.
                self._static_step(cut, keep_guided, longest)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Graphs take turns, so they share their memory; other threads may use the GPU meanwhile.
        pool = next((other.pool() for other in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._static_step(cut, keep_guided, longest)
        # The rehearsals moved every active slot on; their keys are overwritten when the step is taken for good.
        self._state.copy_from(kept)
        return graph

    def _static_step(self, cut: bool, keep_guided: bool, longest: int) -> None:
        slots_N = torch.arange(self.max_slots, device=self.device)
        tokens_NK, guided = self._advance(slots_N, cut, keep_guided, longest)
        self._tokens_NK.copy_(tokens_NK)
        if guided is not None:
            self._guided_NKV.copy_(guided)

    def _advance(self, slots_N: Tensor, cut: bool, keep_guided: bool, longest: int) -> tuple[Tensor, Tensor | None]:
        state, config, R = self._state, self.config, self.max_conditions
        if not self.is_static:
            state.active_N.fill_(True)
            R = int(state.num_conditions_N[slots_N].max())
        rows_NR = slots_N[:, None] * self.max_conditions + torch.arange(R, device=self.device)
        x_ND = self.model.embed_audio(state.tokens_NK[slots_N][:, :, None])[:, 0]
        x_R1D = x_ND.repeat_interleave(R, dim=0)[:, None]
        # An idle slot may stand behind its last column; what it computes there is not used.
        positions_R1 = state.positions_NC[slots_N, :R].reshape(-1, 1).clamp_max(self.max_columns - 1)
        hidden = self._forward(x_R1D.to(self.dtype), rows_NR.flatten(), positions_R1, longest)
        logits = self.model.logits(hidden).view(len(slots_N), R, config.num_codebooks, config.output_size).float()
        coefficients_NR = state.coefficients_NC[slots_N, :R]
        # Rows beyond a slot's conditions hold anything; a product with zero would keep a NaN.
        is_used_NR = coefficients_NR != 0
        is_broken_N = (~torch.isfinite(logits).flatten(2).all(-1) & is_used_NR).any(1)
        logits = torch.where(is_used_NR[:, :, None, None], logits, torch.zeros_like(logits))
        guided_NKV = (logits * coefficients_NR[:, :, None, None]).sum(1)
        guided_NKV[:, 1:, -1] = NEVER
        guided_NKV[:, 0, -1] = torch.where(
            state.may_end_N[slots_N], guided_NKV[:, 0, -1], torch.full_like(guided_NKV[:, 0, -1], NEVER)
        )
        kept = guided_NKV.clone() if keep_guided else None
        tokens_NK = state.advance(slots_N, self._draw(guided_NKV, slots_N, cut), self._delays_K, config).clone()
        tokens_NK[:, 0] = torch.where(is_broken_N, torch.full_like(tokens_NK[:, 0], BROKEN), tokens_NK[:, 0])
        return tokens_NK, kept

    def _draw(self, guided_NKV: Tensor, slots_N: Tensor, cut: bool) -> Tensor:
        state = self._state
        temperature_N = state.temperature_N[slots_N]
        tempered = (
            guided_NKV / torch.where(temperature_N == 0, torch.ones_like(temperature_N), temperature_N)[:, None, None]
        )
        if cut:
            tempered = cut_tails(tempered, state.top_k_N[slots_N], state.top_p_N[slots_N])
        return draw(tempered, temperature_N, state.seed_N[slots_N], state.step_N[slots_N])

    def _forward(self, x_BTD: Tensor, rows_B: Tensor, positions_BT: Tensor, longest: int) -> Tensor:
        """Hidden states [B, T, D] after all blocks; keys and values land in the rows' caches at their positions."""
        cos, sin = self._cosine[positions_BT][:, None], self._sine[positions_BT][:, None]
        unseen_BTS = torch.arange(longest, device=self.device)[None, None] > positions_BT[:, :, None]
        # Added to scores: of booleans, attention would make the same once more in every layer.
        mask_B1TS = torch.zeros_like(unseen_BTS, dtype=self.dtype).masked_fill_(unseen_BTS, -math.inf)[:, None]
        for block, cache in zip(self.model.blocks, self._caches, strict=True):
            assert isinstance(block, Block)
            x_BTD = x_BTD + self._attend(block, cache, x_BTD, cos, sin, rows_B, positions_BT, mask_B1TS)
            x_BTD = x_BTD + block.feed_forward(block.feed_forward_norm(x_BTD))
        return x_BTD

    def _attend(
        self,
        block: Block,
        cache: LayerCache,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        rows_B: Tensor,
        positions_BT: Tensor,
        mask_B1TS: Tensor,
    ) -> Tensor:
        attention = block.attention
        H, G = attention.num_heads, attention.num_kv_heads
        B, T, _ = x_BTD.shape
        qkv = attention.qkv(block.attention_norm(x_BTD)).view(B, T, H + 2 * G, attention.head_dim).transpose(1, 2)
        turned, v = apply_rotary(qkv[:, : H + G], cos, sin), qkv[:, H + G :]
        cache.keys_BHSD[rows_B[:, None], :, positions_BT] = turned[:, H:].transpose(1, 2)
        cache.values_BHSD[rows_B[:, None], :, positions_BT] = v.transpose(1, 2)
        longest = mask_B1TS.shape[-1]
        keys, values = cache.keys_BHSD[:, :, :longest], cache.values_BHSD[:, :, :longest]
        if not self.is_static or keys.shape[0] != B:
            keys, values = keys[rows_B], values[rows_B]
        queries = turned[:, :H]
        if T == 1 and H != G:
            # The queries of a group as one query after the other: kernels for masks know no groups.
            queries = queries.reshape(B, G, H // G, -1)
        y = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask_B1TS, enable_gqa=queries.shape[1] != G
        ).reshape(B, H, T, -1)
        projected: Tensor = attention.out(y.transpose(1, 2).reshape(B, T, -1))
        return projected


class _State:
    """Per-slot state on the device; every change is in place, so that a graph finds it where it was."""

    def __init__(self, config: CodecLMConfig, max_slots: int, max_conditions: int, device: torch.device) -> None:
        def whole(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        N, C = max_slots, max_conditions
        self._fill = config.fill
        self.tokens_NK = torch.full((N, config.num_codebooks), config.fill, dtype=torch.int64, device=device)
        self.positions_NC, self.num_conditions_N = whole(N, C), whole(N)
        self.seed_N, self.step_N, self.end_N, self.top_k_N = whole(N), whole(N), whole(N), whole(N)
        self.coefficients_NC = torch.zeros(N, C, device=device)
        self.temperature_N, self.top_p_N = torch.ones(N, device=device), torch.ones(N, device=device)
        self.active_N, self.may_end_N, self.has_ended_N = (
            torch.zeros(N, dtype=torch.bool, device=device) for _ in "abc"
        )

    def admit(self, slot: int, plan: Plan) -> None:
        """Put a slot at its plan's first step."""
        count, sampler, device = len(plan.prefixes), plan.sampler, self.tokens_NK.device
        self.tokens_NK[slot].fill_(self._fill)
        self.positions_NC[slot].zero_()
        self.positions_NC[slot, :count] = torch.tensor([p.shape[0] for p in plan.prefixes], device=device)
        self.coefficients_NC[slot].zero_()
        self.coefficients_NC[slot, :count] = torch.tensor(plan.coefficients, device=device)
        self.num_conditions_N[slot] = count
        self.seed_N[slot], self.step_N[slot], self.end_N[slot] = plan.seed, 0, plan.max_frames
        self.temperature_N[slot] = sampler.temperature
        self.top_k_N[slot], self.top_p_N[slot] = sampler.top_k or 0, 1.0 if sampler.top_p is None else sampler.top_p
        self.may_end_N[slot], self.has_ended_N[slot] = plan.may_end, False

    def advance(self, slots_N: Tensor, drawn_NK: Tensor, delays_K: Tensor, config: CodecLMConfig) -> Tensor:
        """Apply the delays and the end of speech to drawn tokens, and move the active slots on."""
        active, step, end = self.active_N[slots_N], self.step_N[slots_N], self.end_N[slots_N]
        has_ended = self.has_ended_N[slots_N]
        ends = (drawn_NK[:, 0] == config.eos) & ~has_ended & (step <= end)
        end = torch.where(ends, step, end)
        frame_NK = step[:, None] - delays_K
        alive = (frame_NK >= 0) & (frame_NK < end[:, None])
        tokens_NK = torch.where(alive, drawn_NK, torch.full_like(drawn_NK, config.fill))
        tokens_NK[:, 0] = torch.where(ends, torch.full_like(tokens_NK[:, 0], config.eos), tokens_NK[:, 0])
        self.end_N[slots_N] = torch.where(active, end, self.end_N[slots_N])
        self.has_ended_N[slots_N] = has_ended | (ends & active)
        self.tokens_NK[slots_N] = torch.where(active[:, None], tokens_NK, self.tokens_NK[slots_N])
        self.step_N[slots_N] = step + active.long()
        self.positions_NC[slots_N] = self.positions_NC[slots_N] + active.long()[:, None]
        return tokens_NK

    def clone(self) -> dict[str, Tensor]:
        """A copy of every tensor."""
        return {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}

    def copy_from(self, kept: dict[str, Tensor]) -> None:
        """Put :meth:`clone`'s values back, in place."""
        for name, value in kept.items():
            getattr(self, name).copy_(value)
