"""Guided distributions on disk: a compact code for their top-k, small enough to keep for every token of a corpus.

A distribution is stored as its most probable tokens and the mass of the rest; *decoded*, the rest is spread uniformly
over the legal tokens that are not listed. How many are listed is decided per token: as few as cost at most
``max_loss_nats`` against listing all k (the exact KL of merging the others into the uniform rest). Sharp distributions,
which guidance makes, take a few bytes.

Probabilities are quantised by what an error costs. To second order KL(p || p + d) = sum d^2 / (2 p), which is
2 sum (d sqrt p)^2: a uniform step in sqrt(p) costs the same everywhere. The i-th most probable token (from 1) has
p <= 1/i, so sqrt(i p) fills the range [0, 1] at every rank; with step h the expected cost is h^2/6 sum 1/i, 1.7e-4 nat
for 32 tokens at 6 bits.

Layout: a header with every parameter and a CRC-32, then four streams of fixed-width numbers: entries per token, tail
levels, token ids, probability levels.
"""

import hashlib
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.errors import DataError
from retort.nn.top_k import TopK

_MAGIC, _VERSION = b"RTLK", 1
_HEADER = struct.Struct("<4sBBBBHHIII")
"""Magic, version, bits of ids, of levels and of tails, k, codebooks, steps, codebook size, CRC-32 of all the rest."""
_LEAST = 1e-30

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class CacheEncoding(Config):
    """Precision of the cache."""

    prob_bits: int = Field(default=6, ge=2, le=16)
    """Bits of one probability."""
    tail_bits: int = Field(default=8, ge=2, le=16)
    """Bits of the mass that is not listed."""
    max_loss_nats: float = Field(default=2e-4, ge=0)
    """What leaving tokens out of the list may cost per token, against listing all k; 0 lists all."""

    def fingerprint(self) -> str:
        """Name of the encoding by content; it belongs in the record of everything that was written with it."""
        return f"top_k-{_VERSION}-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]}"


DEFAULT_ENCODING = CacheEncoding()


@dataclass(frozen=True)
class _Header:
    id_bits: int
    prob_bits: int
    tail_bits: int
    k: int
    num_codebooks: int
    num_steps: int
    codebook_size: int

    @property
    def num_tokens(self) -> int:
        return self.num_steps * self.num_codebooks

    def legal(self) -> Integers:
        """Number of legal tokens, [N] in step-major order: only codebook 0 may end the speech."""
        legal_K = np.full(self.num_codebooks, self.codebook_size, dtype=np.int64)
        legal_K[:1] += 1
        return np.tile(legal_K, self.num_steps)

    def pack(self, payload: bytes) -> bytes:
        return self._with_checksum(zlib.crc32(payload, zlib.crc32(self._with_checksum(0)))) + payload

    def _with_checksum(self, checksum: int) -> bytes:
        widths = (self.id_bits, self.prob_bits, self.tail_bits)
        shape = (self.k, self.num_codebooks, self.num_steps, self.codebook_size)
        return _HEADER.pack(_MAGIC, _VERSION, *widths, *shape, checksum)


def encode_top_k(
    top: TopK, *, codebook_size: int, encoding: CacheEncoding = DEFAULT_ENCODING, mask_KS: Tensor | None = None
) -> bytes:
    """Encode the top-k of one utterance.

    Args:
        top: ids and log-probabilities [S, K, k], log tail mass [S, K], legal tokens only.
        codebook_size: V; the id V is the end of speech, legal in codebook 0.
        encoding: precision.
        mask_KS: which (codebook, step) are targets; the others are stored as nothing and decode to uniform.

    Raises:
        ValueError: the shapes do not fit each other, or an id is not below V + 1.
    """
    S, K, k = top.ids.shape
    if top.log_probs.shape != (S, K, k) or top.log_tail.shape != (S, K):
        raise ValueError(f"ids {(S, K, k)}, log_probs {tuple(top.log_probs.shape)}, tail {tuple(top.log_tail.shape)}")
    header = _Header(
        codebook_size.bit_length(), encoding.prob_bits, encoding.tail_bits, k, K, S, codebook_size
    )  # fmt: skip
    ids_NE, probs_NE, tail_N = _ranked(top, S * K, k)
    if ids_NE.size and (ids_NE.min() < 0 or ids_NE.max() > codebook_size):
        raise ValueError(f"token ids {ids_NE.min()} to {ids_NE.max()} do not fit {codebook_size} codes and an end")
    count_N, mass_N = _entries_to_keep(probs_NE, tail_N, header.legal(), encoding.max_loss_nats)
    if mask_KS is not None:
        count_N[~mask_KS.cpu().numpy().T.reshape(-1)] = 0
    kept_NE = np.arange(k) < count_N[:, None]
    ranks = np.broadcast_to(np.arange(1, k + 1, dtype=np.float32), kept_NE.shape)
    streams = (
        (count_N, k.bit_length()),
        (_levels(mass_N, encoding.tail_bits), encoding.tail_bits),
        (ids_NE[kept_NE], header.id_bits),
        (_levels(probs_NE[kept_NE] * ranks[kept_NE], encoding.prob_bits), encoding.prob_bits),
    )
    return header.pack(b"".join(_pack_bits(values, width) for values, width in streams))


def decode_top_k(encoded: bytes) -> TopK:
    """Decode one utterance: ids int64 and log-probabilities fp32 [S, K, k], log tail mass [S, K].

    Where fewer than k tokens were listed, the places are filled with tokens of the uniform rest, each with its share of
    it, so that the result is a top-k of the decoded distribution with k distinct legal tokens everywhere.

    Raises:
        DataError: the bytes are cut, damaged, or of another version.
    """
    header = _read_header(encoded)
    S, K, k, N = header.num_steps, header.num_codebooks, header.k, header.num_tokens
    reader = _Reader(encoded, _HEADER.size)
    count_N = reader.take(N, k.bit_length())
    tail_level_N = reader.take(N, header.tail_bits)
    total = int(count_N.sum())
    ids_M, level_M = reader.take(total, header.id_bits), reader.take(total, header.prob_bits)
    reader.finish()
    legal_N = header.legal()
    if total and (count_N.max() > k or ids_M.max() > header.codebook_size):
        raise _damaged(f"{count_N.max()} entries of {k}, token {ids_M.max()} of {header.codebook_size}")
    kept_NE = np.arange(k) < count_N[:, None]
    ranks = np.broadcast_to(np.arange(1, k + 1, dtype=np.float32), kept_NE.shape)
    probs_NE = np.zeros((N, k), dtype=np.float32)
    probs_NE[kept_NE] = _values(level_M, header.prob_bits) / ranks[kept_NE]
    tail_N = _values(tail_level_N, header.tail_bits) * (count_N < legal_N)
    total_N = probs_NE.sum(1) + tail_N
    probs_NE /= total_N[:, None]
    tail_N /= total_N
    share_N = (tail_N / np.maximum(legal_N - count_N, 1)).astype(np.float32)
    probs_NE = np.where(kept_NE, probs_NE, share_N[:, None])
    ids_NE = np.zeros((N, k), dtype=np.int64)
    ids_NE[kept_NE] = ids_M
    ids_NE[~kept_NE] = _unlisted(ids_NE, kept_NE, min(2 * k, header.codebook_size + 1))
    rest_N = share_N * (legal_N - k).astype(np.float32)
    return TopK(
        torch.from_numpy(ids_NE.reshape(S, K, k)),
        torch.from_numpy(np.log(np.maximum(probs_NE, _LEAST)).reshape(S, K, k)),
        torch.from_numpy(np.log(np.maximum(rest_N, _LEAST)).reshape(S, K)),
    )


def spread_tail(top: TopK, codebook_size: int) -> Tensor:
    """Log-probabilities [S, K, V + 1] of a top-k whose tail is spread uniformly over the other legal tokens.

    An illegal token (the end of speech of codebooks 1..) gets ``-inf``.
    """
    S, K, k = top.ids.shape
    legal_K = torch.full((K,), codebook_size)
    legal_K[:1] += 1
    share_SK = top.log_tail - (legal_K - k).clamp_min(1).log()
    full = share_SK[..., None].expand(S, K, codebook_size + 1).clone()
    full[:, 1:, -1] = -torch.inf
    return full.scatter(-1, top.ids, top.log_probs)


def _ranked(top: TopK, num_tokens: int, k: int) -> tuple[Integers, Floats, Floats]:
    """Ids, probabilities (most probable first) and tail mass, flat over (step, codebook)."""
    ids = top.ids.detach().cpu().numpy().astype(np.int64, copy=False).reshape(num_tokens, k)
    log_probs = top.log_probs.detach().float().cpu().numpy().reshape(num_tokens, k)
    if bool((log_probs[:, 1:] > log_probs[:, :-1]).any()):
        order = np.argsort(-log_probs, axis=1, kind="stable")
        ids, log_probs = np.take_along_axis(ids, order, 1), np.take_along_axis(log_probs, order, 1)
    return ids, np.exp(log_probs), np.exp(top.log_tail.detach().float().cpu().numpy().reshape(num_tokens))


def _entries_to_keep(
    probs_NE: Floats, tail_N: Floats, legal_N: Integers, max_loss_nats: float
) -> tuple[Integers, Floats]:
    """How many entries each token lists, and the mass of the rest then.

    Merging entries n.. into the uniform rest costs ``sum_{i>=n} p_i log p_i + t log(t / (R - k))
    - T_n log(T_n / (R - n))`` with T_n the merged mass: it never grows with n, so the first n within the limit counts.
    """
    N, k = probs_NE.shape
    # Impossible tokens give 0 log 0, which is 0.
    p = np.concatenate([probs_NE, tail_N[:, None]], axis=1)
    size = np.ones((N, k + 1), dtype=np.float32)
    size[:, k] = np.maximum(legal_N - k, 1)
    entropy = p * np.log(np.maximum(p, _LEAST) / size)
    mass = np.cumsum(p[:, ::-1], axis=1)[:, ::-1]
    apart = np.cumsum(entropy[:, ::-1], axis=1)[:, ::-1]
    merged_size = np.maximum(legal_N[:, None] - np.arange(k + 1), 1).astype(np.float32)
    loss = apart - mass * np.log(np.maximum(mass, _LEAST) / merged_size)
    count_N = (loss[:, :k] > max_loss_nats).sum(axis=1) if max_loss_nats else np.full(N, k)
    return count_N.astype(np.int64), mass[np.arange(N), count_N]


def _unlisted(ids_NE: Integers, kept_NE: NDArray[np.bool_], num_candidates: int) -> Integers:
    """For each free place the next smallest id that is not listed in its row, in row order."""
    free_NC = np.ones((len(ids_NE), num_candidates), dtype=bool)
    rows, columns = np.nonzero(kept_NE & (ids_NE < num_candidates))
    free_NC[rows, ids_NE[rows, columns]] = False
    wanted_N = kept_NE.shape[1] - kept_NE.sum(axis=1)
    chosen = free_NC & (np.cumsum(free_NC, axis=1, dtype=np.int32) <= wanted_N[:, None])
    return np.nonzero(chosen)[1]


def _levels(values: Floats, bits: int) -> Integers:
    top = (1 << bits) - 1
    levels: Integers = np.clip(np.rint(np.sqrt(values) * top), 0, top).astype(np.int64)
    return levels


def _values(levels: Integers, bits: int) -> Floats:
    # Level 0 stands for a quarter of a step to half of one, never for zero: a zero would cost an infinite KL.
    return np.square(np.maximum(levels, 0.375, dtype=np.float32) / ((1 << bits) - 1), dtype=np.float32)


def _pack_bits(values: Integers, width: int) -> bytes:
    """Numbers of ``width`` bits each, most significant bit first, the last byte padded with zeros."""
    size = 2 if width <= 16 else 4
    octets = values.astype(f">u{size}").view(np.uint8).reshape(len(values), size)
    return np.packbits(np.unpackbits(octets, axis=1)[:, 8 * size - width :]).tobytes()


class _Reader:
    """Takes streams off the front of the bytes."""

    def __init__(self, encoded: bytes, position: int) -> None:
        self._bytes = np.frombuffer(encoded, dtype=np.uint8)
        self._position = position

    def take(self, count: int, width: int) -> Integers:
        stop = self._position + (count * width + 7) // 8
        if stop > len(self._bytes):
            raise _damaged(f"{len(self._bytes)} bytes, at least {stop} expected")
        bits = np.unpackbits(self._bytes[self._position : stop], count=count * width).reshape(count, width)
        self._position = stop
        size = 2 if width <= 16 else 4
        padded = np.zeros((count, 8 * size), dtype=np.uint8)
        padded[:, 8 * size - width :] = bits
        numbers: Integers = np.packbits(padded, axis=1).view(f">u{size}").reshape(count).astype(np.int64)
        return numbers

    def finish(self) -> None:
        if self._position != len(self._bytes):
            raise _damaged(f"{len(self._bytes)} bytes, {self._position} expected")


def _read_header(encoded: bytes) -> _Header:
    if len(encoded) < _HEADER.size or encoded[:4] != _MAGIC:
        raise _damaged("no header")
    _, version, *fields, checksum = _HEADER.unpack_from(encoded)
    if version != _VERSION:
        raise DataError(
            f"cached top-k of format {version}, this version reads {_VERSION}; write it again with `retort generate`"
        )
    header = _Header(*fields)
    found = header.pack(encoded[_HEADER.size :])[_HEADER.size - 4 : _HEADER.size]
    if found != struct.pack("<I", checksum):
        raise _damaged("the checksum does not fit")
    return header


def _damaged(how: str) -> DataError:
    return DataError(f"cached top-k is damaged: {how}; write it again with `retort generate`")
