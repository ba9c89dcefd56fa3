import pytest
import torch

from retort.models.codec_lm import CodecLM, CodecLMConfig, count_parameters
from retort.nn.conditions import TEXT_PAD, Conditions


def tiny(**changes: object) -> CodecLM:
    config = CodecLMConfig(
        text_vocabulary_size=12, num_codebooks=3, codebook_size=16, dim=32, num_layers=2, num_heads=4, num_kv_heads=2,
        ffn_dim=48,
    ).replace(**changes)  # fmt: skip
    torch.manual_seed(0)
    return CodecLM(config).eval()


def conditions(texts: list[list[int]], prompts: int = 4) -> Conditions:
    L = max(map(len, texts))
    text = torch.tensor([[TEXT_PAD] * (L - len(t)) + t for t in texts])
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, 16, (1, 3, prompts), generator=generator).expand(len(texts), -1, -1)
    return Conditions(text, prompt, torch.ones(len(texts), prompts, dtype=torch.bool))


def inputs(B: int, S: int) -> torch.Tensor:
    return torch.randint(0, 18, (1, 3, S), generator=torch.Generator().manual_seed(2)).expand(B, -1, -1)


def test_a_row_does_not_depend_on_its_padding() -> None:
    model = tiny()
    alone = model(conditions([[5, 6]]), inputs(1, 5))
    padded = model(conditions([[5, 6], [7, 8, 9, 10, 11]]), inputs(2, 5))
    assert torch.allclose(alone[0], padded[0], atol=1e-5)


def test_a_row_does_not_depend_on_the_padding_of_its_prompt() -> None:
    model = tiny()
    alone = conditions([[5, 6]], prompts=3)
    longer = torch.randint(0, 16, (1, 3, 9), generator=torch.Generator().manual_seed(5))
    filled = torch.cat([torch.cat([alone.prompt_BKP, longer[:, :, 3:]], dim=2), longer])
    valid = torch.arange(9) < torch.tensor([[3], [9]])
    both = model(Conditions(alone.text_BL.expand(2, -1), filled, valid), inputs(2, 5))
    assert torch.allclose(model(alone, inputs(1, 5))[0], both[0], atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_the_future_is_not_seen() -> None:
    model = tiny()
    x = inputs(1, 6).clone()
    before = model(conditions([[5, 6]]), x)
    x[:, :, 4] = (x[:, :, 4] + 1) % 16
    after = model(conditions([[5, 6]]), x)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_each_condition_changes_the_output_and_each_null_is_a_condition_of_its_own() -> None:
    model = tiny()
    torch.nn.init.normal_(model.null_prompt)
    given, x = conditions([[5, 6]]), inputs(1, 4)
    outputs = [
        model(given.dropped(text=text, speaker=speaker), x) for text in (False, True) for speaker in (False, True)
    ]
    for i, a in enumerate(outputs):
        for b in outputs[i + 1 :]:
            assert not torch.allclose(a, b, atol=1e-4)


def test_the_null_text_hides_the_length_of_the_text() -> None:
    model = tiny()
    a = model(conditions([[5, 6]]).dropped(text=True, speaker=True), inputs(1, 4))
    b = model(conditions([[5, 6, 7, 8, 9]]).dropped(text=True, speaker=True), inputs(1, 4))
    assert torch.allclose(a, b, atol=1e-5)


def test_a_scale_conditioned_student_needs_and_uses_the_scale() -> None:
    model = tiny(guidance_scales=(1.0, 2.0))
    given = conditions([[5, 6]])
    with pytest.raises(ValueError, match="guidance scale"):
        model(given, inputs(1, 3))
    outputs = [
        model(Conditions(given.text_BL, given.prompt_BKP, given.prompt_mask_BP, torch.tensor([i])), inputs(1, 3))
        for i in (0, 1)
    ]
    assert not torch.allclose(*outputs)


def test_grouped_queries_save_parameters_and_odd_shapes_are_refused() -> None:
    assert count_parameters(tiny(num_kv_heads=1)) < count_parameters(tiny(num_kv_heads=4))
    with pytest.raises(ValueError, match="num_heads"):
        tiny(num_heads=5)
    with pytest.raises(ValueError, match="delays"):
        tiny(delays=(0, 1))


def test_fields_that_came_later_are_not_written_at_their_defaults() -> None:
    plain, changed = tiny().config, tiny(norm_eps=1e-5, head_dim=12, speaker_prompt="none").config
    later = {"norm_eps", "rope_scaling", "head_dim", "speaker_prompt"}
    assert later.isdisjoint(plain.model_dump(mode="json"))
    assert later - set(changed.model_dump(mode="json")) == {"rope_scaling"}
    assert CodecLMConfig.model_validate_json(changed.model_dump_json()) == changed


def test_without_a_prompt_the_text_alone_is_the_prefix() -> None:
    model = tiny(speaker_prompt="none")
    given = conditions([[5, 6], [7, 8, 9]])
    prefix, valid = model.embed_conditions(given)
    assert torch.equal(prefix, model.text_embedding(given.text_BL))
    assert torch.equal(valid, given.text_BL != TEXT_PAD)
    dropped = given.dropped(text=False, speaker=True)
    assert torch.equal(model(given, inputs(2, 4)), model(dropped, inputs(2, 4)))
    assert not any("prompt" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="prompt column"):
        tiny(speaker_prompt="none", guidance_scales=[1.5])
