import math
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retort.data.logit_cache import (
    CacheEncoding,
    decode_top_k,
    encode_top_k,
    spread_tail,
)
from retort.errors import DataError
from retort.losses.divergence import ForwardKL, TopK, legal_log_softmax, token_divergence, top_k_of


def _top(logits_SKV, k):
    top = top_k_of(logits_SKV[None], k)
    return TopK(top.ids[0], top.log_probs[0], top.log_tail[0])


def _random(S=20, K=3, V=64, *, scale=3.0, seed=0):
    return torch.randn(S, K, V + 1, generator=torch.Generator().manual_seed(seed)) * scale


def _full_kl(logits_SKV, top, V):
    """KL(full || top-k with its tail spread uniformly), [S, K], in float64 and by the definition."""
    log_p = legal_log_softmax(logits_SKV[None])[0].double()
    terms = log_p.exp() * (log_p - spread_tail(top, V).double())
    terms[:, 1:, -1] = 0  # the end of speech is no outcome of the other codebooks
    return terms.sum(-1)


@settings(max_examples=60, deadline=None)
@given(
    logits=hnp.arrays("float32", (3, 2, 41), elements=st.floats(-30, 30, width=32)),
    k=st.integers(1, 40),
    scale=st.floats(0.0, 3.0),
)
def test_coding_costs_little_beyond_the_top_k_itself(logits, k, scale):
    logits = torch.from_numpy(logits) * scale
    top = _top(logits, k)
    decoded = decode_top_k(encode_top_k(top, codebook_size=40))
    extra = _full_kl(logits, decoded, 40) - _full_kl(logits, top, 40)
    assert extra.max() <= 1.5e-3
    assert torch.allclose(decoded.log_probs.exp().sum(-1) + decoded.log_tail.exp(), torch.ones(3, 2), atol=1e-5)
    assert torch.allclose(spread_tail(decoded, 40).exp().sum(-1), torch.ones(3, 2), atol=1e-5)


@pytest.mark.parametrize(("V", "k", "scale"), [(256, 32, 1.0), (256, 32, 4.0), (1024, 32, 4.0), (4096, 32, 8.0)])
def test_mean_cost_of_coding_is_below_half_a_thousandth_of_a_nat(V, k, scale):
    logits = _random(V=V, scale=scale)
    top = _top(logits, k)
    decoded = decode_top_k(encode_top_k(top, codebook_size=V))
    extra = _full_kl(logits, decoded, V) - _full_kl(logits, top, V)
    assert extra.mean() <= 5e-4


def test_sharp_distributions_stay_within_a_thousandth_of_a_nat_of_the_full_ones_in_48_bytes():
    V = 4096
    rank = torch.arange(1, V + 2).float()
    logits = torch.stack([-1.2 * (rank[torch.randperm(V + 1)]).clamp(max=40) for _ in range(120)]).view(60, 2, V + 1)
    encoded = encode_top_k(_top(logits, 32), codebook_size=V)
    assert _full_kl(logits, decode_top_k(encoded), V).mean() <= 1e-3
    assert len(encoded) / 120 <= 48


def test_bytes_per_token_grow_with_entropy_and_never_pass_96_at_4096_entries():
    V = 4096
    sizes = [
        len(encode_top_k(_top(_random(V=V, scale=scale), 32), codebook_size=V)) / 60 for scale in (30.0, 8.0, 2.0, 0.0)
    ]
    assert sizes[0] <= 48
    assert max(sizes) <= 96
    # A flat distribution is its own uniform rest: nothing is worth listing.
    assert sizes[3] < sizes[0] < sizes[1] < sizes[2]


def _slow_decode_one(encoded, index, k, V, config):
    """One token's listed entries straight from the format's description, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in encoded[24:])
    N = 60
    widths = (k.bit_length(), config.tail_bits, V.bit_length(), config.prob_bits)
    counts = [int(bits[i * widths[0] : (i + 1) * widths[0]], 2) for i in range(N)]
    starts, position = [], 0
    for width, size in zip(widths, (N, N, sum(counts), sum(counts)), strict=True):
        starts.append(position)
        position += math.ceil(size * width / 8) * 8
    first = sum(counts[:index])

    def number(stream, at):
        return int(bits[starts[stream] + at * widths[stream] :][: widths[stream]], 2)

    ids = [number(2, first + i) for i in range(counts[index])]
    probs = [(max(number(3, first + i), 0.375) / (2 ** widths[3] - 1)) ** 2 / (i + 1) for i in range(counts[index])]
    tail = (max(number(1, index), 0.375) / (2 ** widths[1] - 1)) ** 2
    return ids, [p / (sum(probs) + tail) for p in probs]


def test_decoding_agrees_with_a_bit_by_bit_reading_of_the_format():
    config, k, V = CacheEncoding(), 12, 64
    encoded = encode_top_k(_top(_random(), k), codebook_size=V, encoding=config)
    decoded = decode_top_k(encoded)
    for index in (0, 1, 31, 59):
        ids, probs = _slow_decode_one(encoded, index, k, V, config)
        got_ids = decoded.ids.view(60, k)[index].tolist()
        assert got_ids[: len(ids)] == ids
        assert torch.allclose(decoded.log_probs.view(60, k)[index, : len(ids)].exp(), torch.tensor(probs), rtol=1e-4)


def test_fine_precision_comes_back_nearly_exactly():
    config = CacheEncoding(prob_bits=16, tail_bits=16, max_loss_nats=0.0)
    top = _top(_random(), 16)
    decoded = decode_top_k(encode_top_k(top, codebook_size=64, encoding=config))
    assert torch.equal(decoded.ids, top.ids)
    assert torch.allclose(decoded.log_probs.exp(), top.log_probs.exp(), atol=1e-4)
    assert torch.allclose(decoded.log_tail.exp(), top.log_tail.exp(), atol=1e-4)


def test_ids_are_distinct_and_legal_wherever_few_are_listed():
    decoded = decode_top_k(encode_top_k(_top(_random(V=16, scale=20.0), 16), codebook_size=16))
    ordered = decoded.ids.sort(-1).values
    assert (ordered[..., 1:] > ordered[..., :-1]).all()
    assert decoded.ids.min() >= 0
    assert decoded.ids[:, 1:].max() < 16
    assert decoded.ids[:, 0].max() <= 16


def test_the_loss_of_a_student_hardly_moves_when_the_targets_went_through_the_cache():
    teacher, student = _random(seed=1), _random(seed=2)
    top = _top(teacher, 24)
    decoded = decode_top_k(encode_top_k(top, codebook_size=64))
    exact, cached = (
        token_divergence(ForwardKL(), student[None], TopK(t.ids[None], t.log_probs[None], t.log_tail[None])).mean()
        for t in (top, decoded)
    )
    assert abs(float(exact - cached)) < 5e-3 * float(exact)


def test_positions_without_a_target_cost_a_few_bits_and_decode_to_uniform():
    top = _top(_random(), 16)
    mask_KS = torch.zeros(3, 20, dtype=torch.bool)
    mask_KS[0] = True
    masked = encode_top_k(top, codebook_size=64, mask_KS=mask_KS)
    assert len(masked) < 0.5 * len(encode_top_k(top, codebook_size=64))
    decoded = decode_top_k(masked)
    assert torch.equal(decoded.ids[:, 0], decode_top_k(encode_top_k(top, codebook_size=64)).ids[:, 0])
    assert torch.allclose(decoded.log_probs[:, 1:].exp(), torch.tensor(1 / 64), rtol=1e-5)


def test_unsorted_entries_are_accepted():
    top = _top(_random(), 8)
    flipped = TopK(top.ids.flip(-1), top.log_probs.flip(-1), top.log_tail)
    assert encode_top_k(flipped, codebook_size=64) == encode_top_k(top, codebook_size=64)


def test_an_empty_utterance_round_trips():
    empty = TopK(torch.zeros(0, 2, 4, dtype=torch.int64), torch.zeros(0, 2, 4), torch.zeros(0, 2))
    assert decode_top_k(encode_top_k(empty, codebook_size=8)).ids.shape == (0, 2, 4)


@settings(max_examples=80, deadline=None)
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused(place, flip):
    encoded = bytearray(encode_top_k(_top(_random(S=4), 8), codebook_size=64))
    encoded[place % len(encoded)] ^= flip
    with pytest.raises(DataError, match="cached top-k"):
        decode_top_k(bytes(encoded))


@pytest.mark.parametrize("length", [0, 3, 23, 24, 40])
def test_a_cut_is_refused(length):
    encoded = encode_top_k(_top(_random(S=4), 8), codebook_size=64)
    with pytest.raises(DataError, match="damaged"):
        decode_top_k(encoded[:length])


def test_a_forged_length_with_a_right_checksum_is_refused():
    encoded = encode_top_k(_top(_random(S=4), 8), codebook_size=64)[:-3]
    header = encoded[:20] + bytes(4)
    forged = encoded[:20] + zlib.crc32(encoded[24:], zlib.crc32(header)).to_bytes(4, "little") + encoded[24:]
    with pytest.raises(DataError, match="expected"):
        decode_top_k(forged)


def test_shapes_and_ids_that_do_not_fit_are_our_own_bugs():
    top = _top(_random(), 8)
    with pytest.raises(ValueError, match="do not fit 10 codes"):
        encode_top_k(top, codebook_size=10)
    with pytest.raises(ValueError, match="tail"):
        encode_top_k(TopK(top.ids, top.log_probs, top.log_tail[:3]), codebook_size=64)


def test_the_fingerprint_names_the_precision():
    assert CacheEncoding().fingerprint() == CacheEncoding().fingerprint()
    assert CacheEncoding(prob_bits=8).fingerprint() != CacheEncoding().fingerprint()
