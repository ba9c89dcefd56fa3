"""The engine against the slow reference, under any order of arrival, in C and in torch."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.errors import ConfigError
from retort.inference.engine import Engine
from retort.inference.native.runner import NativeRunner
from retort.inference.runner import Plan, Runner, plan_for
from retort.inference.sampling import NEVER, SamplerConfig
from retort.inference.torch_runner import TorchRunner
from retort.models.codec_lm import CodecLM
from retort.nn.guided_rows import combine_rows, stack_for_guidance
from tests.inference.plain_decoding import GREEDY, GUIDANCES, conditions, decode_plainly, model

SLOTS, FRAMES = 3, 9
SAMPLERS = {
    "greedy": GREEDY,
    "plain": SamplerConfig(),
    "cut": SamplerConfig(temperature=0.8, top_k=4, top_p=0.9),
}
MakeRunner = Callable[[CodecLM], Runner]


def in_c(lm: CodecLM, *, threads: int = 1) -> NativeRunner:
    return NativeRunner(
        lm, weight_format="fp32", max_slots=SLOTS, max_conditions=3, max_columns=40, threads=threads
    )  # fmt: skip


def in_torch(lm: CodecLM) -> TorchRunner:
    return TorchRunner(lm, max_slots=SLOTS, max_conditions=3, max_columns=40)


def static(lm: CodecLM) -> TorchRunner:
    """The steps that a CUDA graph would hold, without the graph."""
    return TorchRunner(lm, max_slots=SLOTS, max_conditions=3, max_columns=40, is_static=True)


RUNNERS: dict[str, MakeRunner] = {"c": in_c, "torch": in_torch, "static": static}


def plan(lm: CodecLM, text: list[int], guidance: str, sampler: str, seed: int, max_frames: int = FRAMES) -> Plan:
    return plan_for(
        lm, conditions(lm.config.num_codebooks, [text]).row(0), guidance=GUIDANCES[guidance],
        sampler=SAMPLERS[sampler], seed=seed, max_frames=max_frames,
    )  # fmt: skip


def finish(engine: Engine, *, arrivals: dict[int, list[Plan]]) -> dict[int, tuple[Tensor, bool]]:
    """Step until all is done; plans join at the step of their key, or as soon as a slot is free after it."""
    frames: dict[int, list[Tensor]] = {}
    ended: dict[int, bool] = {}
    waiting: list[Plan] = []
    step = 0
    while len(ended) < sum(map(len, arrivals.values())):
        waiting += arrivals.get(step, [])
        while waiting and engine.num_free:
            frames[engine.add(waiting.pop(0))] = []
        for advance in engine.step():
            frames[advance.ticket].append(advance.frames_KT)
            if advance.is_done:
                ended[advance.ticket] = advance.has_eos
        step += 1
    assert engine.num_active == 0
    return {ticket: (torch.cat(parts, dim=1), ended[ticket]) for ticket, parts in frames.items()}


request = st.tuples(
    st.integers(0, 12),
    st.lists(st.integers(2, 11), min_size=1, max_size=5),
    st.sampled_from(sorted(GUIDANCES)),
    st.sampled_from(sorted(SAMPLERS)),
    st.integers(0, 2**31),
    st.integers(1, FRAMES),
)


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("K", [1, 3])
@settings(max_examples=25, deadline=None)
@given(asked=st.lists(request, min_size=1, max_size=7))
def test_any_order_of_arrival_gives_what_each_would_get_alone(
    kind: str, K: int, asked: list[tuple[int, list[int], str, str, int, int]]
) -> None:
    lm = model(K)
    ordered = sorted(asked, key=lambda a: a[0])
    arrivals: dict[int, list[Plan]] = {}
    for when, *rest in ordered:
        arrivals.setdefault(when, []).append(plan(lm, *rest))
    got = finish(Engine(RUNNERS[kind](lm)), arrivals=arrivals)
    for ticket, (_, text, guidance, sampler, seed, limit) in enumerate(ordered):
        codes_KT, has_eos = decode_plainly(
            lm, conditions(K, [text]), GUIDANCES[guidance], SAMPLERS[sampler], seed=seed, max_frames=limit
        )
        assert torch.equal(got[ticket][0], codes_KT), (text, guidance, sampler, seed)
        assert got[ticket][1] == has_eos


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_cached_logits_equal_those_of_the_full_forward_pass(kind: str, guidance: str) -> None:
    lm = model(3)
    runner = RUNNERS[kind](lm)
    runner.admit(1, plan(lm, [5, 6], guidance, "plain", 0))
    steps = [runner.step([1], keep_guided=True) for _ in range(6)]
    fed = torch.cat([torch.full((1, 3), lm.config.fill), *(tokens_1K for tokens_1K, _ in steps[:-1])])
    with torch.no_grad():
        stacked = stack_for_guidance(conditions(3, [[5, 6]]), GUIDANCES[guidance])
        logits = lm(stacked, fed.T[None].repeat(len(GUIDANCES[guidance].conditions), 1, 1))
    expected = combine_rows(logits, GUIDANCES[guidance])[0]
    for (_, guided), expected_KV in zip(steps, expected, strict=True):
        assert guided is not None
        legal = guided[0] > NEVER / 2
        assert legal.sum() == 3 * 6 + 1, "the end of speech is codebook 0's alone"
        assert torch.allclose(guided[0][legal], expected_KV[legal], atol=1e-4)


@pytest.mark.parametrize("kind", RUNNERS)
def test_grouped_query_attention_and_biases(kind: str) -> None:
    lm = model(2, num_kv_heads=1, qkv_bias=True)
    got = finish(Engine(RUNNERS[kind](lm)), arrivals={0: [plan(lm, [5, 6], "two", "greedy", 0)]})
    expected = decode_plainly(lm, conditions(2, [[5, 6]]), GUIDANCES["two"], GREEDY, seed=0, max_frames=FRAMES)
    assert torch.equal(got[0][0], expected[0])


@pytest.mark.parametrize("kind", RUNNERS)
def test_logits_that_are_no_numbers_end_that_utterance_and_no_other(kind: str) -> None:
    lm = model(2)
    engine = Engine(RUNNERS[kind](lm))
    good = plan(lm, [5, 6], "two", "plain", 1)
    poisoned = replace(good, prefixes=tuple(prefix * float("nan") for prefix in good.prefixes))
    bad, fine = engine.add(poisoned), engine.add(good)
    first = {advance.ticket: advance for advance in engine.step()}
    assert (first[bad].is_done, first[bad].is_broken, first[bad].has_eos) == (True, True, False)
    assert not first[fine].is_broken
    frames = [first[fine].frames_KT]
    while engine.num_active:
        frames += [advance.frames_KT for advance in engine.step()]
    expected = decode_plainly(
        lm, conditions(2, [[5, 6]]), GUIDANCES["two"], SAMPLERS["plain"], seed=1, max_frames=FRAMES
    )
    assert torch.equal(torch.cat(frames, dim=1), expected[0])
    again = finish(engine, arrivals={0: [good] * SLOTS})
    assert all(torch.equal(codes_KT, expected[0]) for codes_KT, _ in again.values()), "its slot is clean again"


def test_two_threads_give_the_bits_of_one() -> None:
    lm = model(3)
    plans = [plan(lm, [5, 6, 7], "three", "plain", seed) for seed in range(3)]
    one, two = (finish(Engine(in_c(lm, threads=threads)), arrivals={0: plans}) for threads in (1, 2))
    assert all(torch.equal(one[ticket][0], two[ticket][0]) for ticket in one)


def test_more_rows_than_one_call_takes_are_split() -> None:
    lm = model(2)
    runner = NativeRunner(lm, weight_format="fp32", max_slots=300, max_conditions=2, max_columns=32, threads=1)
    plans = [plan(lm, [2 + seed % 9], "two", "plain", seed, max_frames=3) for seed in range(300)]
    many = finish(Engine(runner), arrivals={0: plans})
    few = finish(Engine(in_c(lm)), arrivals={0: plans})
    assert all(torch.equal(many[ticket][0], few[ticket][0]) for ticket in many)


def test_frames_come_as_soon_as_their_last_codebook_does() -> None:
    lm = model(3)
    engine = Engine(in_c(lm))
    engine.add(plan(lm, [5, 6], "none", "greedy", 0, max_frames=4))
    widths = []
    while engine.num_active:
        widths += [advance.frames_KT.shape[1] for advance in engine.step()]
    assert widths[:2] == [0, 0], "a delay of two steps"
    assert all(width == 1 for width in widths[2 : 2 + sum(widths)])


def test_a_cancelled_utterance_leaves_at_once_and_its_slot_is_used_again() -> None:
    lm = model(2)
    engine = Engine(in_c(lm))
    first = engine.add(plan(lm, [5], "two", "plain", 1))
    engine.step()
    engine.cancel(first)
    engine.cancel(first)
    assert (engine.num_active, engine.num_free, engine.step()) == (0, SLOTS, [])
    got = finish(engine, arrivals={0: [plan(lm, [7, 8], "two", "plain", 2)]})
    expected = decode_plainly(
        lm, conditions(2, [[7, 8]]), GUIDANCES["two"], SAMPLERS["plain"], seed=2, max_frames=FRAMES
    )
    assert torch.equal(next(iter(got.values()))[0], expected[0])


def test_what_does_not_fit_is_refused_and_takes_no_slot() -> None:
    lm = model(2)
    runner = NativeRunner(lm, weight_format="fp32", max_slots=1, max_conditions=1, max_columns=32, threads=1)
    engine = Engine(runner)
    with pytest.raises(ConfigError, match="this engine holds 32; shorten the text"):
        engine.add(plan(lm, [5] * 23, "none", "greedy", 0))
    with pytest.raises(ConfigError, match="2 conditions, this engine holds 1"):
        engine.add(plan(lm, [5], "two", "greedy", 0, max_frames=2))
    engine.add(plan(lm, [5], "none", "greedy", 0, max_frames=2))
    with pytest.raises(RuntimeError, match="all 1 slots are taken"):
        engine.add(plan(lm, [5], "none", "greedy", 0, max_frames=2))


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_broken_utterance_leaves_nothing_behind_for_the_next_one_in_its_slot(kind: str) -> None:
    lm = model(1)
    whole = lm.audio_embedding.weight.clone()
    plans = [replace(plan(lm, [a, b], "none", "plain", b), may_end=False) for a in range(2, 12) for b in range(2, 12)]
    alone = (finish(Engine(RUNNERS[kind](lm)), arrivals={0: [p]})[0][0] for p in plans)
    without_0 = next(p for p, codes_KT in zip(plans, alone, strict=True) if codes_KT.all())
    with torch.no_grad():
        lm.audio_embedding.weight[0] = float("nan")  # token 0 is what follows from no numbers: an idle slot goes on so
    engine = Engine(RUNNERS[kind](lm))
    engine.add(without_0)
    ticket = engine.add(Plan((torch.full((20, lm.config.dim), float("nan")),), (1.0,), GREEDY, 0, FRAMES))
    advances = [advance for _ in range(4) for advance in engine.step() if advance.ticket == ticket]
    assert [advance.is_broken for advance in advances] == [True]
    with torch.no_grad():
        lm.audio_embedding.weight.copy_(whole)
    good = [engine.add(without_0) for _ in range(engine.num_free)]
    later = [advance for _ in range(FRAMES) for advance in engine.step() if advance.ticket in good]
    assert len(later) == 2 * FRAMES
    assert not any(advance.is_broken for advance in later)


def test_a_step_of_all_slots_looks_no_further_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.inference.torch_runner._SHORTEST", 2)
    lm, looked = model(3), list[int]()
    runner = static(lm)
    run = runner._run_everyone

    def noted(cut: bool, keep_guided: bool, longest: int) -> None:
        looked.append(longest)
        run(cut, keep_guided, longest)

    monkeypatch.setattr(runner, "_run_everyone", noted)
    plans = {0: [plan(lm, [5, 6], "two", "plain", 3)], 4: [plan(lm, [7], "two", "plain", 4)]}
    got = finish(Engine(runner), arrivals=plans)
    for ticket, (text, seed) in enumerate([([5, 6], 3), ([7], 4)]):
        expected, _ = decode_plainly(
            lm, conditions(3, [text]), GUIDANCES["two"], SAMPLERS["plain"], seed=seed, max_frames=FRAMES
        )
        assert torch.equal(got[ticket][0], expected)
    assert set(looked) == {4, 8}


def test_warming_up_captures_every_length_with_and_without_cut_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.inference.torch_runner._SHORTEST", 16)
    runner = TorchRunner(model(1), max_slots=1, max_conditions=1, max_columns=40, is_static=True, use_graph=True)
    captured: list[tuple[bool, bool, int]] = []
    monkeypatch.setattr(runner, "_capture", lambda *key: captured.append(key))
    runner.warm_up()
    assert captured == [(cut, False, longest) for longest in (16, 32, 48) for cut in (False, True)]
