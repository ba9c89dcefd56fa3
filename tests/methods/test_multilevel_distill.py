"""SPADE's distillation: which layer imitates which, masks, scales, and memory that does not grow with depth."""

import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from retort.data.batches import CodebookLayout, LMBatch, conditions_for, lay_out
from retort.errors import ConfigError
from retort.losses.divergence import SkewKL, masked_mean, token_cross_entropy, token_divergence, token_forward_kl
from retort.losses.features import attention_mse, latent_mse
from retort.methods.multilevel_distill import (
    MultilevelDistillConfig,
    MultilevelObjective,
    TracedTeacher,
    matched_layers,
)
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.conditions import TEXT_PAD
from retort.nn.guidance import TwoTermGuidance
from retort.nn.transformer import Block

K, V = 2, 9
LAYOUT = CodebookLayout(codebook_size=V, delays=(0, 1))


def model(num_layers: int = 4, *, seed: int = 0) -> CodecLM:
    torch.manual_seed(seed)
    config = CodecLMConfig(
        text_vocabulary_size=8, num_codebooks=K, codebook_size=V, dim=16, num_layers=num_layers, num_heads=2,
        num_kv_heads=1, ffn_dim=24,
    )  # fmt: skip
    lm = CodecLM(config).eval()
    with torch.no_grad():  # away from the initial point, where every attention map is uniform
        for parameter in lm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return lm


def batch_codes(lengths: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(V, (K, length), generator=generator) for length in lengths]


def batch(lengths: tuple[int, ...] = (6, 3), *, texts: list[list[int]] | None = None) -> LMBatch:
    codes = batch_codes(lengths)
    conditions = conditions_for(texts or [[3, 4, 5], [6]][: len(lengths)], [None] * len(lengths), K)
    return LMBatch(conditions, *lay_out(codes, LAYOUT), row_B=torch.arange(len(lengths)))


def test_the_worked_example_of_matching() -> None:
    assert matched_layers((0, 3, 4), 6, "dynamic") == [2, 3, 5]
    assert matched_layers((0, 3, 4), 6, "static") == [0, 3, 4]
    assert matched_layers(tuple(range(6)), 6, "dynamic") == matched_layers(tuple(range(6)), 6, "static")
    for wrong in ((), (2, 1), (0, 6), (-1, 2), (1, 1)):
        with pytest.raises(ConfigError, match="must be ascending layers of the teacher's 6"):
            matched_layers(wrong, 6, "dynamic")


def test_the_small_weight_of_the_skew_stands_on_the_first_argument() -> None:
    teacher, student = torch.tensor([3.0, 0.0, -3.0, 0.0]), torch.tensor([-1.0, 2.0, 0.5, 0.0])

    def by_hand(first: Tensor, second: Tensor) -> Tensor:
        p, q = first.softmax(0), second.softmax(0)
        return (p * (p / (0.1 * p + 0.9 * q)).log()).sum()

    shaped = [x.view(1, 1, 1, 4) for x in (student, teacher)]
    torch.testing.assert_close(token_divergence(SkewKL(), *shaped).squeeze(), by_hand(teacher, student))
    torch.testing.assert_close(
        token_divergence(SkewKL(direction="reverse"), *shaped).squeeze(), by_hand(student, teacher)
    )
    p, q = teacher.softmax(0), student.softmax(0)
    swapped = (p * (p / (0.9 * p + 0.1 * q)).log()).sum()
    assert token_divergence(SkewKL(), *shaped).squeeze() > 10 * swapped, "swapped weights look like fast convergence"
    near = token_divergence(SkewKL(skew=1e-6), *shaped).squeeze()
    torch.testing.assert_close(near, token_forward_kl(*shaped).squeeze(), rtol=1e-3, atol=1e-4)


def test_a_copy_of_the_teacher_has_no_loss_but_its_cross_entropy() -> None:
    teacher = model()
    config = MultilevelDistillConfig()
    objective = MultilevelObjective(model(), (0, 1, 2, 3), 4, config)
    out = objective(batch(), TracedTeacher(teacher, config).targets(batch()))
    for name in ("logit", "latent", "attention", "embedding"):
        assert float(out.metrics[name]) == pytest.approx(0.0, abs=1e-6)
    assert float(out.loss.detach()) == pytest.approx(0.25 * float(out.metrics["ce"]), rel=1e-5)


@pytest.mark.parametrize("relative", [True, False])
def test_no_term_depends_on_padding(relative: bool) -> None:
    config = MultilevelDistillConfig(relative=relative)
    teacher, student = model(), model(2, seed=1)
    objective = MultilevelObjective(student, (0, 3), 4, config)

    def terms(given: LMBatch) -> dict[str, float]:
        out = objective(given, TracedTeacher(teacher, config).targets(given))
        return {name: float(value) for name, value in out.metrics.items()}

    # The second row, of three steps and one letter, beside a longer one; then the same codes without any padding.
    long = batch((6, 3), texts=[[3, 4, 5], [6]])
    padded = LMBatch(
        long.conditions.row(1), long.inputs_BKS[1:], long.targets_BKS[1:], long.mask_BKS[1:], long.row_B[1:]
    )  # fmt: skip
    codes = batch_codes((6, 3))[1]
    alone = LMBatch(conditions_for([[6]], [None], K), *lay_out([codes], LAYOUT), row_B=torch.tensor([0]))
    assert padded.inputs_BKS.shape[2] > alone.inputs_BKS.shape[2]
    assert terms(padded) == pytest.approx(terms(alone), rel=1e-4)


def test_features_count_valid_columns_only() -> None:
    student, teacher = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    spoilt = torch.where(valid[..., None], student, torch.full_like(student, 1e3))
    assert latent_mse(student, teacher, valid, is_relative=False) == latent_mse(
        spoilt, teacher, valid, is_relative=False
    )
    by_hand = (student - teacher).square()[valid].mean()
    torch.testing.assert_close(latent_mse(student, teacher, valid, is_relative=False), by_hand)
    maps = torch.rand(2, 2, 5, 5), torch.rand(2, 2, 5, 5)
    per_query = (maps[0] - maps[1]).square().sum(-1)
    torch.testing.assert_close(attention_mse(*maps, valid, is_relative=False), per_query.transpose(1, 2)[valid].mean())


def test_relative_terms_are_of_one_scale_where_published_ones_are_not() -> None:
    teacher, student, given = model(), model(2, seed=1), batch()
    found = {}
    for relative in (False, True):
        config = MultilevelDistillConfig(relative=relative)
        out = MultilevelObjective(student, (0, 3), 4, config)(given, TracedTeacher(teacher, config).targets(given))
        found[relative] = {name: float(out.metrics[name]) for name in ("latent", "attention", "embedding")}
    assert max(found[True].values()) < 100 * min(found[True].values())


def test_guidance_enters_the_logits_and_not_the_features() -> None:
    teacher, student, given = model(), model(2, seed=1), batch()
    plain = MultilevelDistillConfig()
    guided = MultilevelDistillConfig(guidance=TwoTermGuidance(scale=2.0))
    outs = [
        MultilevelObjective(student, (0, 3), 4, config)(given, TracedTeacher(teacher, config).targets(given)).metrics
        for config in (plain, guided)
    ]
    assert outs[0]["latent"] == outs[1]["latent"]
    assert outs[0]["attention"] == outs[1]["attention"]
    assert outs[0]["logit"] != outs[1]["logit"]


@dataclass
class Seen:
    """What the blocks of a model were given and gave, by hooks on the modules of an ordinary pass."""

    outputs: list[Tensor]
    maps: list[Tensor]
    embedding: Tensor
    logits: Tensor


def watched(lm: CodecLM, given: LMBatch) -> Seen:
    outputs, maps, inputs = list[Tensor](), list[Tensor](), list[Tensor]()
    hooks = []
    for block in lm.blocks:
        assert isinstance(block, Block)
        hooks += [
            block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
            block.register_forward_hook(lambda _, __, out: outputs.append(out)),
            block.attention.register_forward_pre_hook(lambda module, args: maps.append(module.weights(*args))),
        ]
    with torch.no_grad():
        logits = lm(given.conditions, given.inputs_BKS)
    for hook in hooks:
        hook.remove()
    return Seen(outputs, maps, inputs[0], logits)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_that_of_the_paper_term_by_term(relative: bool, temperature: float) -> None:
    """A student of two layers, kept from 1 and 2 of a teacher's five, by loops over what counts."""
    config = MultilevelDistillConfig(
        relative=relative, temperature=temperature, ce_weight=0.4, logit_weight=0.9, latent_weight=0.8,
        attention_weight=0.7, embedding_weight=0.6,
    )  # fmt: skip
    teacher, student, given = model(5), model(2, seed=1), batch((6, 3))
    out = MultilevelObjective(student, (1, 2), 5, config)(given, TracedTeacher(teacher, config).targets(given))
    taught, mine = watched(teacher, given), watched(student, given)
    # A column is a letter, the speaker, or a step with a target.
    letters = given.conditions.text_BL != TEXT_PAD
    valid = torch.cat([letters, torch.ones(2, 1, dtype=torch.bool), given.mask_BKS.any(1)], dim=1)
    assert 0 < int(valid.sum()) < valid.numel()

    def distance(a: Tensor, b: Tensor, size: int) -> float:
        """Of vectors in rows [N, ...]: by the teacher's own size, or by how many numbers there are."""
        squares = float((a.double() - b.double()).square().sum())
        return squares / (float(b.double().square().sum()) if relative else size)

    def latent(a: Tensor, b: Tensor) -> float:
        return distance(a[valid], b[valid], a[valid].numel())

    def attention(a: Tensor, b: Tensor) -> float:
        rows = [x.transpose(1, 2)[valid] for x in (a, b)]  # queries first: [N, H, T]
        return distance(rows[0], rows[1], rows[0].shape[0] * rows[0].shape[1])

    pairs = [(0, 1), (1, 4)]  # the last teacher layer before the next one that was kept, and the last of all
    expected = {
        "latent": sum(latent(mine.outputs[n], taught.outputs[t]) for n, t in pairs) / 2,
        "attention": sum(attention(mine.maps[n], taught.maps[t]) for n, t in pairs) / 2,
        "embedding": latent(mine.embedding, taught.embedding),
        "ce": float(masked_mean(token_cross_entropy(mine.logits, given.targets_BKS), given.mask_BKS)),
        "logit": float(
            masked_mean(token_divergence(SkewKL(), mine.logits, taught.logits, temperature=temperature), given.mask_BKS)
        ),
    }
    assert {name: float(term) for name, term in out.metrics.items()} == pytest.approx(expected, rel=1e-4)
    weights = {"ce": 0.4, "logit": 0.15 * 0.9, "latent": 0.15 * 0.8, "attention": 0.15 * 0.7, "embedding": 0.15 * 0.6}
    assert float(out.loss.detach()) == pytest.approx(sum(weights[n] * expected[n] for n in expected), rel=1e-4)


class MapsAlive(TorchDispatchMode):
    """How many tensors of the shape of an attention map are alive at once."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.most = shape, 0
        self._seen: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and tuple(out.shape) == self.shape:
            self._seen.append(weakref.ref(out.untyped_storage()))
            self._seen = [ref for ref in self._seen if ref() is not None]
            self.most = max(self.most, len({id(ref()) for ref in self._seen}))
        return out


def test_attention_maps_of_the_loss_do_not_pile_up_with_depth() -> None:
    added = {}
    for depth in (2, 8):
        most = {}
        for weight in (0.0, 1.0):
            config = MultilevelDistillConfig(latent_weight=0.0, embedding_weight=0.0, attention_weight=weight)
            teacher, student, given = model(depth), model(depth, seed=1), batch((6,), texts=[[3, 4, 5]])
            objective = MultilevelObjective(student, tuple(range(depth)), depth, config)
            targets = TracedTeacher(teacher, config).targets(given)
            columns = targets.trace.states_BTD[0].shape[1]
            with MapsAlive((1, 2, columns, columns)) as maps:
                objective(given, targets).loss.backward()
            most[weight] = maps.most
        added[depth] = most[1.0] - most[0.0]
    assert added[8] <= added[2] + 2, added
