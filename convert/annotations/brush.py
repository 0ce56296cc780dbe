"""Label Studio's runs of brush strokes, the form of thi.ng/rle-pack: bits in bytes, the highest first.

32 bits: how many words there are; 5: the bits of a word, less 1; four times 4: the bits of a length, less 1. Then
blocks: a bit, 1 if one word is repeated and 0 if as many follow; 2 bits: which length; the length, less 1; the words.
The words are the pixels of a picture, row by row, in RGBA, whose alpha is the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

OPAQUE = 128
"""Alpha from which on a pixel belongs to the mask; brushes have soft edges."""
_LENGTHS = (3, 4, 8, 16)
"""Bits of lengths, as Label Studio chooses them."""


def decode(packed: Sequence[int], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The mask of `size` (height, width) of a list of bytes. Raises ValueError if they hold none."""
    try:
        words = _unpack(np.array(packed, np.uint8))
    except (ValueError, OverflowError, TypeError) as error:
        raise ValueError(f"its runs are damaged: {error}") from error
    if len(words) != 4 * size[0] * size[1]:
        raise ValueError(f"its runs have {len(words)} numbers, and {size[1]} x {size[0]} pixels have 4 each")
    return words.reshape(*size, 4)[..., 3] >= OPAQUE


def encode(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """The bytes of a mask, opaque or transparent, which `decode` reads; all four channels are alike."""
    pixels = mask.ravel()
    bounds = np.flatnonzero(np.diff(pixels, prepend=~pixels[:1], append=~pixels[-1:]))
    bits = [f"{4 * pixels.size:032b}", f"{8 - 1:05b}", *(f"{length - 1:04b}" for length in _LENGTHS)]
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        word, left = f"{255 * int(pixels[start]):08b}", 4 * (end - start)
        while left:
            taken = min(left, 1 << _LENGTHS[-1])
            which = next(i for i, length in enumerate(_LENGTHS) if taken <= 1 << length)
            bits += ["1", f"{which:02b}", f"{taken - 1:0{_LENGTHS[which]}b}", word]
            left -= taken
    text = "".join(bits)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tolist()


def _unpack(packed: UInt8[np.ndarray, "n"]) -> UInt8[np.ndarray, "words"]:
    bits = np.unpackbits(packed)
    text = (bits + ord("0")).tobytes().decode()
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(text):
            raise ValueError("they end too early")
        return int(text[place - count : place], 2)

    count, size = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if size != 8 or count > 1 << 31:
        raise ValueError(f"{count} words of {size} bits")
    words = np.empty(count, np.uint8)
    done = 0
    while done < count:
        repeated = read(1)
        end = min(done + read(lengths[read(2)]) + 1, count)
        if repeated:
            words[done:end] = read(8)
        else:
            start, place = place, place + 8 * (end - done)
            if place > len(text):
                raise ValueError("they end too early")
            words[done:end] = np.packbits(bits[start:place])
        done = end
    return words
