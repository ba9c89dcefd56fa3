import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retort.nn.guidance import (
    Guidance,
    NoGuidance,
    ThreeTermGuidance,
    TwoTermGuidance,
    guide,
)

SCALES = st.floats(0.1, 5.0)


def logits() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {c: torch.randn(2, 5, generator=generator) for c in ("full", "no_text", "no_speaker", "null")}


def test_guidance_at_one_returns_the_condition() -> None:
    z = logits()
    assert torch.equal(guide(cond=z["full"], null=z["null"], scale=1.0), z["full"])
    assert torch.equal(TwoTermGuidance(scale=1.0).build().combine(z), z["full"])
    assert torch.equal(NoGuidance().build().combine(z), z["full"])
    assert torch.allclose(ThreeTermGuidance(first_scale=1.0, second_scale=1.0).build().combine(z), z["full"])


@given(w=SCALES)
def test_two_terms_equal_the_formula(w: float) -> None:
    z = logits()
    expected = z["null"] + w * (z["full"] - z["null"])
    assert torch.allclose(TwoTermGuidance(scale=w).build().combine(z), expected, atol=1e-5)
    assert torch.allclose(guide(cond=z["full"], null=z["null"], scale=w), expected)


@given(w1=SCALES, w2=SCALES)
def test_three_terms_equal_the_formula_and_coefficients_sum_to_one(w1: float, w2: float) -> None:
    z = logits()
    guidance = ThreeTermGuidance(first_scale=w1, second_scale=w2, partial="no_speaker").build()
    assert sum(guidance.coefficients.values()) == pytest.approx(1.0)
    expected = z["null"] + w1 * (z["no_speaker"] - z["null"]) + w2 * (z["full"] - z["no_speaker"])
    assert torch.allclose(guidance.combine(z), expected, atol=1e-4)


@given(text=SCALES, speaker=SCALES)
def test_the_scales_of_text_and_voice_are_those_of_the_terms_that_add_them(text: float, speaker: float) -> None:
    """``null + speaker (voice alone - null) + text (both - voice alone)``, and the other way round."""
    voice_first = ThreeTermGuidance(first_scale=speaker, second_scale=text, partial="no_text").build()
    text_first = ThreeTermGuidance(first_scale=text, second_scale=speaker, partial="no_speaker").build()
    for guidance in (voice_first, text_first):
        assert (guidance.text_scale, guidance.speaker_scale) == (pytest.approx(text), pytest.approx(speaker))
    both = TwoTermGuidance(scale=text).build()
    assert (both.text_scale, both.speaker_scale) == (text, text)
    assert (NoGuidance().build().text_scale, NoGuidance().build().speaker_scale) == (1.0, 1.0)


def test_guiding_logits_equals_guiding_log_probabilities() -> None:
    z = {k: v.double() for k, v in logits().items()}
    guidance = TwoTermGuidance(scale=2.5).build()
    of_logits = guidance.combine(z).softmax(-1)
    of_log_probs = guidance.combine({k: v.log_softmax(-1) for k, v in z.items()}).softmax(-1)
    assert torch.allclose(of_logits, of_log_probs, atol=1e-6)


def test_coefficients_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to"):
        Guidance({"full": 2.0})
