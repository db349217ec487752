"""Changes of files at random: bytes, numbers, pieces of another file, and words of the format."""

from __future__ import annotations

import contextlib
import io
import random
import zipfile
from collections.abc import Sequence

__all__ = ["mutated"]

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**62, 2**63 - 1,
           2**64 - 1)
WORDS = (
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"-", b"null", b"true", b"NaN", b"1e999", b"\\u0000",
    b"9" * 30, b"[" * 3000, b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"TREE", b"SNOD", b"HEAP",
    b"OHDR", b"F32", b"BF16", b"shape", b"units", b"layers", b"\xff" * 8, b"\0" * 8, b"(", b"=",
    b"h", b"W x", b"U h", b"sigmoid(", b"\n")


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return a file with a few changes; checksums and lengths around them fit mostly."""
    if data.startswith(b"PK") and rng.random() < 0.8:
        with contextlib.suppress(Exception):  # changed before, so that it is no archive
            return _changed_inside(data, others, rng)
    return _changed(data, others, rng)


def _changed_inside(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return a zip archive with changes in one of its members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info: archive.read(info) for info in archive.infolist()}
    chosen, out = rng.choice(list(members)), io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for info, content in members.items():
            info.file_size = info.compress_size = 0
            archive.writestr(info, _changed(content, others, rng) if info is chosen else content)
    return out.getvalue()


def _changed(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1) if rng.random() < 0.6 else rng.randrange(
            min(len(out), 400) + 1)
        way = rng.randrange(9)
        if way == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif way == 1 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            del out[at : at + rng.choice((1, 1, 2, 4, 8, 64))]
        elif way == 3:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % 256**size
            out[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif way == 4:
            word = rng.choice(WORDS)
            out[at : at + rng.choice((0, len(word)))] = word
        elif way == 5:
            other = rng.choice(others)
            start, size = rng.randrange(len(other) + 1), rng.choice((4, 16, 64, 512))
            out[at : at + rng.choice((0, size))] = other[start : start + size]
        elif way == 6:
            size = rng.choice((1, 8, 64))
            out[at:at] = out[at : at + size] * rng.choice((1, 2, 30))
        elif way == 7 and len(out) > 8 and rng.random() < 0.3:
            del out[at:]
        elif at < len(out) and chr(out[at]).isdigit():
            out[at : at + 1] = rng.choice((b"0", b"7", b"-1", b"99999999", b"1.5", b"1e9"))
    if rng.random() < 0.5 and data[8:9] == b"{" and len(out) > 8:
        # safetensors: the length of the header fits again
        length = int.from_bytes(data[:8], "little") + len(out) - len(data)
        out[:8] = max(0, length).to_bytes(8, "little")
    return bytes(out)
