"""How much sound a file says that it holds, where libsndfile would not notice a cut, or would believe too little.

Sizes that a writer left open, since it streamed or never came to an end, promise nothing.
"""

from typing import Literal

from retort.audio.limits import AudioRejected

_MAX_CHUNKS = 256
_ALL_ONES_64 = (1 << 64) - 1
# What stands where a 32-bit size is not known: all ones (FFmpeg, most servers) or nearly, half of it (SoX, arecord), or
# nothing yet.
_OPEN_SIZES = (range(1), range(0x7FFFF000, 0x80000100), range(0xFFFFFF00, 1 << 32))
_MP3_SIDE_BYTES = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}
# Tags at the end of a file, such as ID3v1; a second recording is longer.
_MP3_TAIL_BYTES = 1024


def refuse_cut_container(encoded: bytes) -> None:
    """Refuse the cuts that libsndfile mends in silence; it finds those in FLAC and MP3 by itself.

    Raises:
        AudioRejected: truncated.
    """
    promised, present = _sizes(encoded)
    if promised > present:
        detail = f"{promised} bytes are promised, {present} are there; copy or export the recording again"
        raise AudioRejected("truncated", detail)


def _sizes(encoded: bytes) -> tuple[int, int]:
    """Bytes that the container promises and that are there; (0, 0) leaves a strange file to the decoder."""
    match encoded[:4], encoded[8:12]:
        case b"RIFF", b"WAVE":
            return _wav_sizes(encoded)
        case b"RF64", b"WAVE":
            return _rf64_sizes(encoded)
        case b"FORM", _:
            size = int.from_bytes(encoded[4:8], "big")
            return (0 if _is_open(size) else size), len(encoded) - 8
        case b".snd", _:
            size = int.from_bytes(encoded[8:12], "big")
            return (0 if _is_open(size) else size), len(encoded) - int.from_bytes(encoded[4:8], "big")
        case b"caff", _:
            return _caf_sizes(encoded)
        case b"riff", _:  # W64, whose sizes have 64 bits and count their own headers
            return int.from_bytes(encoded[16:24], "little"), len(encoded)
        case b"OggS", _:
            return _ogg_last_page_sizes(encoded)
    return 0, 0


def _is_open(size: int) -> bool:
    return any(size in sizes for sizes in _OPEN_SIZES)


def _wav_sizes(encoded: bytes) -> tuple[int, int]:
    data = _chunk(encoded, "little", 4)
    if data is None:
        return 0, 0
    return (0 if _is_open_wav(encoded, data[0]) else data[0]), data[1]


def _is_open_wav(encoded: bytes, size: int) -> bool:
    # A file that knows its own length, and whose sound goes beyond it or is nothing, is no stream.
    return _is_open(size) and int.from_bytes(encoded[4:8], "little") != len(encoded) - 8


def _rf64_sizes(encoded: bytes) -> tuple[int, int]:
    data = _chunk(encoded, "little", 4)
    if data is None or encoded[12:16] != b"ds64":
        return 0, 0
    size = int.from_bytes(encoded[28:36], "little")
    return (0 if size in (0, _ALL_ONES_64) else size), data[1]


def _caf_sizes(encoded: bytes) -> tuple[int, int]:
    data = _chunk(encoded, "big", 8)
    return (0, 0) if data is None or data[0] == _ALL_ONES_64 else data


def _chunk(encoded: bytes, order: Literal["little", "big"], width: int) -> tuple[int, int] | None:
    """Stated and present bytes of the chunk of sound; sizes have ``width`` bytes."""
    position = 12 if width == 4 else 8
    for _ in range(_MAX_CHUNKS):
        start = position + 4 + width
        size = int.from_bytes(encoded[position + 4 : start], order)
        if encoded[position : position + 4] == b"data":
            return size, len(encoded) - start
        position = start + size + (size % 2 if width == 4 else 0)
    return None


def _ogg_last_page_sizes(encoded: bytes) -> tuple[int, int]:
    """Promised and present bytes of the last page (RFC 3533, section 6), which must carry the end-of-stream flag."""
    last_page = encoded[encoded.rfind(b"OggS") :]
    if len(last_page) < 27 or not last_page[5] & 4:
        return len(last_page) + 1, len(last_page)
    num_segments = last_page[26]
    return 27 + num_segments + sum(last_page[27 : 27 + num_segments]), len(last_page)


def id3_size(encoded: bytes) -> int:
    """Bytes of the ID3v2 tag at the start of a file, 0 without one: four times seven bits, after ten bytes."""
    if encoded[:3] != b"ID3" or len(encoded) < 10:
        return 0
    size = 0
    for byte in encoded[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def is_mp3_length_known(encoded: bytes) -> bool:
    """Whether a tag states the length, and speaks of the whole file: one that was joined end to end has only a part's.

    libsndfile stops where the tag says, or where it guesses the end by the first bit rate.
    """
    start = id3_size(encoded)
    header = encoded[start : start + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return False
    at = start + 4 + _MP3_SIDE_BYTES[header[1] & 0x18 == 0x18, header[3] & 0xC0 == 0xC0]
    flags = int.from_bytes(encoded[at + 4 : at + 8], "big")
    if encoded[at : at + 4] not in (b"Xing", b"Info") or not flags & 1:
        return False
    stated = int.from_bytes(encoded[at + 12 : at + 16], "big") if flags & 2 else 0
    return not stated or len(encoded) - start <= stated + _MP3_TAIL_BYTES


def with_sizes(encoded: bytes) -> bytes:
    """The file itself, or a WAV stream with the size of what is there, since libsndfile takes none for no sound."""
    if encoded[:4] != b"RIFF" or encoded[8:12] != b"WAVE":
        return encoded
    data = _chunk(encoded, "little", 4)
    if data is None or data[0] != 0 or not _is_open_wav(encoded, 0):
        return encoded
    start = len(encoded) - data[1]
    sizes = (min(size, 0xFFFFFFFF).to_bytes(4, "little") for size in (len(encoded) - 8, data[1]))
    return b"".join((encoded[:4], next(sizes), encoded[8 : start - 4], next(sizes), encoded[start:]))
