import pytest
import torch
from pydantic import ValidationError

from retort.data.batches import CodebookLayout, LMBatch, conditions_for, lay_out
from retort.losses.divergence import (
    AnyDivergence,
    ForwardKL,
    SkewKL,
    masked_mean,
    token_divergence,
    token_forward_kl,
    top_k_of,
)
from retort.methods.cfg_distill import (
    CachedTeacher,
    CFGDistillConfig,
    CFGDistillObjective,
    LiveTeacher,
)
from retort.methods.multilevel_distill import MultilevelDistillConfig, TracedTeacher
from retort.models.codec_lm import CodecLM
from retort.models.initialise import student_from
from retort.models.presets import tiny
from retort.nn.guidance import NoGuidance, ThreeTermGuidance, TwoTermGuidance
from retort.nn.guided_rows import guided_logits

SHAPE = tiny((12, 2, 16))
GUIDED = CFGDistillConfig(guidance=TwoTermGuidance(scale=2.0))


def teacher() -> CodecLM:
    torch.manual_seed(0)
    model = CodecLM(SHAPE).eval()
    with torch.no_grad():
        model.heads.weight.mul_(10)
        model.null_prompt.normal_()
    return model


def batch() -> LMBatch:
    generator = torch.Generator().manual_seed(1)
    codes = [torch.randint(0, 16, (2, n), generator=generator) for n in (6, 3, 5)]
    inputs, targets, mask = lay_out(codes, CodebookLayout(16, (0, 1)))
    given = conditions_for([[4, 5], [6], [7, 8, 9]], [codes[1], codes[0], codes[0]], 2)
    return LMBatch(given, inputs, targets, mask, torch.arange(3))


def test_guided_targets_equal_separate_passes() -> None:
    model, given = teacher(), batch()
    three = ThreeTermGuidance(first_scale=1.5, second_scale=2.5, partial="no_speaker")
    with torch.no_grad():
        z = {
            (text, speaker): model(given.conditions.dropped(text=text, speaker=speaker), given.inputs_BKS)
            for text, speaker in ((False, False), (False, True), (True, True))
        }
        got = guided_logits(model, given.conditions, given.inputs_BKS, three.build())
    full, partial, null = z[False, False], z[False, True], z[True, True]
    assert torch.allclose(got, null + 1.5 * (partial - null) + 2.5 * (full - partial), atol=1e-4)


def test_a_copy_has_no_loss_against_its_unguided_teacher_and_some_against_the_guided_one() -> None:
    model = teacher()
    student = student_from(model, SHAPE, init="teacher")
    for guidance, is_zero in ((NoGuidance(), True), (TwoTermGuidance(scale=2.0), False)):
        config = CFGDistillConfig(guidance=guidance)
        out = CFGDistillObjective(student, config)(batch(), LiveTeacher(model, config).targets(batch()))
        assert (float(out.loss.detach()) < 1e-6) == is_zero


def test_the_student_learns_the_guided_distribution() -> None:
    model, given = teacher(), batch()
    student = student_from(model, SHAPE, init="teacher")
    objective = CFGDistillObjective(student, GUIDED)
    targets = LiveTeacher(model, GUIDED).targets(given)
    adam = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = objective(given, targets).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_cached_targets_give_the_live_loss_within_the_tail_mass() -> None:
    model, given = teacher(), batch()
    student = student_from(model, SHAPE, init="random")
    live = LiveTeacher(model, GUIDED).targets(given)
    assert live.logits_BSKV is not None
    full = CFGDistillObjective(student, GUIDED)(given, live).loss
    lengths = given.mask_BKS.any(1).sum(1).tolist()
    for k, bound in ((16, 1e-3), (8, 0.05)):
        top = top_k_of(live.logits_BSKV, k)
        lookup = {
            b: type(top)(top.ids[b, :n], top.log_probs[b, :n], top.log_tail[b, :n]) for b, n in enumerate(lengths)
        }
        cached = CachedTeacher(lookup, 2).targets(given)
        loss = CFGDistillObjective(student, GUIDED)(given, cached).loss
        assert torch.isfinite(loss)
        tail = masked_mean(top.log_tail.exp(), given.mask_BKS)
        assert float(loss.detach()) <= float(full.detach()) + 1e-4
        assert float((full - loss).detach()) < bound, f"k={k}: tail mass {float(tail):.4f}"


def test_the_scale_as_an_input_reaches_targets_and_student() -> None:
    model, given = teacher(), batch()
    config = CFGDistillConfig(guidance=TwoTermGuidance(scale=2.0), guidance_scales=(1.0, 2.0, 3.0))
    student = student_from(model, SHAPE.replace(guidance_scales=[1.0, 2.0, 3.0]), init="teacher")
    targets = LiveTeacher(model, config, seed=4).targets(given)
    assert targets.scale_B is not None
    assert targets.logits_BSKV is not None
    for b, index in enumerate(targets.scale_B.tolist()):
        guidance = TwoTermGuidance(scale=config.guidance_scales[index]).build()
        expected = guided_logits(model, given.conditions, given.inputs_BKS, guidance)
        assert torch.allclose(targets.logits_BSKV[b], expected[b], atol=1e-4)
    out = CFGDistillObjective(student, config)(given, targets)
    out.loss.backward()
    assert student.scale_embedding is not None
    assert student.scale_embedding.weight.grad is not None
    assert student.scale_embedding.weight.grad.abs().sum() > 0


def test_cross_entropy_alone_needs_no_teacher_and_terms_add_with_their_weights() -> None:
    model, given = teacher(), batch()
    student = student_from(model, SHAPE, init="random")
    targets = LiveTeacher(model, GUIDED).targets(given)
    kl = CFGDistillObjective(student, GUIDED)(given, targets).loss
    ce_only = CFGDistillConfig(guidance=NoGuidance(), kl_weight=0.0, ce_weight=1.0)
    ce = CFGDistillObjective(student, ce_only)(given, type(targets)()).loss
    both = CFGDistillConfig(guidance=TwoTermGuidance(scale=2.0), kl_weight=0.5, ce_weight=0.25)
    total = CFGDistillObjective(student, both)(given, targets).loss
    assert torch.allclose(total, 0.5 * kl + 0.25 * ce)
    live = targets.logits_BSKV
    assert live is not None
    direct = masked_mean(token_forward_kl(student(given.conditions, given.inputs_BKS), live), given.mask_BKS)
    assert torch.allclose(kl, direct)


@pytest.mark.parametrize("divergence", [ForwardKL(), SkewKL(), SkewKL(skew=0.3, direction="reverse")], ids=str)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_loss_is_the_divergence_at_its_temperature(divergence: AnyDivergence, temperature: float) -> None:
    """Against the live teacher and against everything cached; held to the definition in tests/losses."""
    model, given = teacher(), batch()
    student = student_from(model, SHAPE, init="random")
    config = GUIDED.replace(divergence=divergence, temperature=temperature)
    live = LiveTeacher(model, config).targets(given)
    assert live.logits_BSKV is not None
    with torch.no_grad():
        mine = student(given.conditions, given.inputs_BKS)
    tokens_BSK = token_divergence(divergence, mine, live.logits_BSKV, temperature=temperature)
    expected = float(masked_mean(tokens_BSK, given.mask_BKS))
    top, lengths = top_k_of(live.logits_BSKV, 16, temperature=temperature), given.mask_BKS.any(1).sum(1).tolist()
    lookup = {b: type(top)(top.ids[b, :n], top.log_probs[b, :n], top.log_tail[b, :n]) for b, n in enumerate(lengths)}
    for targets in (live, CachedTeacher(lookup, 2).targets(given)):
        out = CFGDistillObjective(student, config)(given, targets)
        assert float(out.loss.detach()) == pytest.approx(expected, rel=2e-3)
        assert float(out.metrics["kl"]) == pytest.approx(expected, rel=2e-3)


def test_a_teacher_is_never_in_training_mode() -> None:
    def model() -> CodecLM:
        torch.manual_seed(0)
        return CodecLM(SHAPE.replace(dropout=0.5)).train()

    for made in (LiveTeacher(model(), GUIDED), TracedTeacher(model(), MultilevelDistillConfig())):
        first, second = (made.targets(batch()).logits_BSKV for _ in range(2))
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="nothing would be learned"):
        CFGDistillConfig(guidance=NoGuidance(), kl_weight=0.0)
    with pytest.raises(ValidationError, match="two_term"):
        CFGDistillConfig(guidance=NoGuidance(), guidance_scales=(1.0,))
    with pytest.raises(ValidationError, match="targets: live"):
        CFGDistillConfig(guidance=TwoTermGuidance(scale=2.0), guidance_scales=(1.0,), targets="cached")
