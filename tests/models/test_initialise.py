import pytest
import torch

from retort.errors import ConfigError
from retort.models.codec_lm import CodecLM, CodecLMConfig, count_parameters
from retort.models.initialise import kept_layers, student_from
from retort.models.presets import preset
from retort.nn.conditions import Conditions

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
