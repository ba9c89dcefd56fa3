import pytest
import torch

from retort.errors import ConfigError
from retort.inference.decode import Decoder
from retort.inference.sampling import SamplerConfig
from retort.models.activations import measure_activations
from retort.models.codec_lm import CodecLM, CodecLMConfig, count_parameters
from retort.models.initialise import bypass, kept_layers, student_from
from retort.models.presets import preset
from retort.nn.conditions import Conditions
from retort.nn.guidance import NoGuidance

CONFIG = CodecLMConfig(
    text_vocabulary_size=12, num_codebooks=2, codebook_size=16, dim=32, num_layers=4, num_heads=4, num_kv_heads=4,
    ffn_dim=48,
)  # fmt: skip


def teacher() -> CodecLM:
    torch.manual_seed(0)
    return CodecLM(CONFIG).eval()


def logits(model: CodecLM) -> torch.Tensor:
    text = torch.tensor([[4, 5, 6]])
    given = Conditions(text, torch.ones(1, 2, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool))
    return model.eval()(given, torch.ones(1, 2, 5, dtype=torch.int64))


def test_an_equal_shape_is_an_exact_copy_that_shares_nothing() -> None:
    source = teacher()
    student = student_from(source, CONFIG, init="teacher")
    assert torch.equal(logits(student), logits(source))
    with torch.no_grad():
        student.heads.weight.zero_()
    assert source.heads.weight.abs().sum() > 0


def test_fewer_layers_are_evenly_spaced_copies() -> None:
    assert kept_layers(4, 4) == [0, 1, 2, 3]
    assert kept_layers(6, 3) == [0, 2, 5]
    assert kept_layers(6, 1) == [0]
    source = teacher()
    student = student_from(source, CONFIG.replace(num_layers=2), init="teacher")
    assert torch.equal(student.blocks[1].feed_forward.down.weight, source.blocks[3].feed_forward.down.weight)
    pruned = teacher()
    pruned.blocks = torch.nn.ModuleList([pruned.blocks[0], pruned.blocks[3]])
    assert torch.equal(logits(student), logits(pruned))


def test_width_keeps_the_channels_that_carry_the_signal() -> None:
    source = teacher()
    dead = [1, 5, 6, 11, 12, 13, 20, 30]
    with torch.no_grad():  # channels that nothing writes to, and heads and units that write nothing
        for block in source.blocks:
            block.attention.out.weight[dead] = 0
            block.feed_forward.down.weight[dead] = 0
            block.attention.out.weight[:, 8:16] = 0
            block.feed_forward.down.weight[:, 40:] = 0
        for table in (source.text_embedding, source.audio_embedding):
            table.weight[:, dead] = 0
        source.prompt_encoder[2].weight[dead] = 0
    narrow = CONFIG.replace(dim=24, num_heads=3, num_kv_heads=3, ffn_dim=40)
    student = student_from(source, narrow, init="teacher")
    random = student_from(source, narrow, init="random")
    assert torch.allclose(logits(student), logits(source), atol=2e-3)
    assert not torch.allclose(logits(random), logits(source), atol=0.1)


KEPT = [([0, 3], "evenly"), ([0, 1, 3], "with neighbours"), ([2], "alone"), ([0, 1, 2, 3], "all")]


@pytest.mark.parametrize("kept", [layers for layers, _ in KEPT], ids=[name for _, name in KEPT])
def test_bypassed_is_pruned_bit_for_bit_and_shares_every_weight(kept: list[int]) -> None:
    source = teacher()
    bypassed = bypass(source, kept)
    pruned = student_from(source, CONFIG.replace(num_layers=len(kept)), init="teacher", layers=kept)
    assert torch.equal(logits(bypassed), logits(pruned))
    assert {p.data_ptr() for p in bypassed.parameters()} <= {p.data_ptr() for p in source.parameters()}
    assert bypassed.config == pruned.config
    given = Conditions(torch.tensor([[4, 5, 6]]), torch.ones(1, 2, 3, dtype=torch.int64), torch.ones(1, 3).bool())
    unguided = NoGuidance().build()
    spoken = [
        Decoder(model, precision="fp32").decode(
            given, guidance=unguided, sampler=SamplerConfig(), seeds=[3], max_frames=12, keep_top_k=4
        )[0]
        for model in (bypassed, pruned)
    ]
    assert torch.equal(spoken[0].codes_KT, spoken[1].codes_KT)
    assert spoken[0].top_k is not None
    assert spoken[1].top_k is not None
    assert torch.equal(spoken[0].top_k.log_probs, spoken[1].top_k.log_probs)


def test_layers_that_are_not_there_are_refused() -> None:
    for wrong in ([], [1, 0], [0, 4], [-1, 2], [1, 1]):
        with pytest.raises(ConfigError, match="must be ascending layers of the teacher's 4"):
            bypass(teacher(), wrong)
    with pytest.raises(ConfigError, match=r"has 3 layers, but the layers \[0, 3\]"):
        student_from(teacher(), CONFIG.replace(num_layers=3), init="teacher", layers=[0, 3])


def calibration(rows: int = 3) -> tuple[Conditions, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(3, 12, (rows, 4), generator=generator)
    given = Conditions(text, torch.ones(rows, 2, 3, dtype=torch.int64), torch.ones(rows, 3, dtype=torch.bool))
    inputs = torch.randint(16, (rows, 2, 6), generator=generator)
    return given, inputs, torch.ones_like(inputs, dtype=torch.bool)


def test_activations_find_the_parts_that_are_in_use() -> None:
    source = teacher()
    with torch.no_grad():
        for block in source.blocks:
            block.attention.qkv.weight[2 * 32 + 8 : 2 * 32 + 16] = 0  # values of the second head
            block.feed_forward.gate_up.weight[40:48] = 0  # gates of the last eight units
    found = measure_activations(source, [calibration()])
    assert found.heads_LH[:, 1].abs().max() == 0
    assert found.units_LF[:, 40:].abs().max() == 0
    narrow = CONFIG.replace(num_layers=2, num_heads=3, num_kv_heads=3, dim=24, ffn_dim=40)
    student = student_from(source, narrow, init="activations", layers=[1, 3], activations=found)
    channels = found.channels_D.topk(24).indices.sort().values
    expected = source.blocks[3].feed_forward.down.weight[channels][:, :40]
    assert torch.equal(student.blocks[1].feed_forward.down.weight, expected)
    heads = [i for i in range(32) if not 8 <= i < 16]
    assert torch.equal(
        student.blocks[0].attention.out.weight, source.blocks[1].attention.out.weight[channels][:, heads]
    )


def test_padding_does_not_count_as_activity() -> None:
    source = teacher()
    given, inputs, mask = calibration(1)
    padded = Conditions(
        torch.cat([torch.zeros(1, 2, dtype=torch.int64), given.text_BL], 1), given.prompt_BKP, given.prompt_mask_BP
    )
    longer = torch.cat([inputs, inputs[:, :, :2]], dim=2)
    masked = torch.cat([mask, torch.zeros(1, 2, 2, dtype=torch.bool)], dim=2)
    alone, among = (measure_activations(source, [one]) for one in ((given, inputs, mask), (padded, longer, masked)))
    torch.testing.assert_close(alone.units_LF, among.units_LF)
    torch.testing.assert_close(alone.channels_D, among.channels_D)


def test_random_initialisation_takes_nothing() -> None:
    source = teacher()
    student = student_from(source, CONFIG, init="random")
    assert not torch.equal(student.heads.weight, source.heads.weight)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_layers": 5}, "num_layers: the student has 5, more than its teacher's 4"),
        ({"codebook_size": 17}, "codebook_size: the student has 17, the teacher 16"),
        ({"dim": 24, "num_heads": 2, "num_kv_heads": 2}, "heads have 12 dimensions"),
    ],
)
def test_what_cannot_be_distilled_is_refused_with_both_values(change: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        student_from(teacher(), CONFIG.replace(**change), init="teacher")


@pytest.mark.parametrize(
    ("name", "millions", "layers"), [("spotify_1b3", 1300, 24), ("spotify_500m", 500, 16), ("spotify_180m", 180, 12)]
)
def test_presets_have_paper_1s_sizes(name: str, millions: int, layers: int) -> None:
    config = preset(name)((256, 8, 1024))  # type: ignore[arg-type]
    with torch.device("meta"):
        size = count_parameters(CodecLM(config))
    assert size / 1e6 == pytest.approx(millions, rel=0.06)
    assert config.num_layers == layers
