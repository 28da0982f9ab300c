"""Masks: keystreams of AES-256 in counter mode, added to a vector modulo 2^32.

A key is derived for one session and one use; a keystream that hid two vectors would give away
their difference.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Sign = Literal[1, -1]

KEY_BYTES: Final = 32
LABEL: Final = b"handbill/v1/secagg/"
CHUNK: Final = 1 << 15  # words of keystream at a time: they stay in the processor's cache
SEGMENT: Final = 8 * CHUNK  # words under one nonce: a thread's piece of work
_ZEROS: Final = bytes(4 * CHUNK)
_BUFFER_BYTES: Final = 4 * CHUNK + 16  # update_into asks for a block more than it writes


def derive(secret: bytes, *, transcript: bytes, use: str) -> bytes:
    """A key for one use in one session: HKDF-SHA256, salted with the session's transcript."""
    info = LABEL + use.encode()
    return HKDF(SHA256(), length=KEY_BYTES, salt=transcript, info=info).derive(secret)


def add_masks(vector: Words, masks: Iterable[tuple[bytes, Sign]]) -> None:
    """Add keys' keystreams to a vector in place, or take them away; wraps modulo 2^32.

    Every segment of the vector is a task for one of as many threads as there are processors: the
    cipher and the sum run outside Python's lock. A chunk gets all its masks before the next: it is
    read from memory once, not once for every mask.

    Args:
        vector: Contiguous, shape (d,).
        masks: Keys of 32 bytes, never used for another vector; 1 adds, -1 subtracts.
    """
    masks = list(masks)

    def mask(number: int) -> None:
        segment = vector[number * SEGMENT : (number + 1) * SEGMENT]
        buffer = bytearray(_BUFFER_BYTES)
        streams = [
            (_segment(key, number, segment.size, buffer), np.add if sign > 0 else np.subtract)
            for key, sign in masks
        ]
        for start in range(0, segment.size, CHUNK):
            part = segment[start : start + CHUNK]
            for stream, combine in streams:
                combine(part, next(stream), out=part)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(mask, range(-(-vector.size // SEGMENT))))


def keystream(key: bytes, count: int) -> Iterator[Words]:
    """The first ``count`` words of a key's keystream, :data:`CHUNK` at a time.

    Segment i is the keystream of AES-256-GCM (NIST SP 800-38D, section 6.5: counter mode from block
    2) under the nonce i, big endian, whose tag nobody asks for: OpenSSL runs it on wider registers
    than plain counter mode.

    Args:
        key: 32 bytes.
        count: Words; each piece is overwritten by the next.
    """
    buffer = bytearray(_BUFFER_BYTES)
    for number, start in enumerate(range(0, count, SEGMENT)):
        yield from _segment(key, number, min(SEGMENT, count - start), buffer)


def _segment(key: bytes, number: int, count: int, buffer: bytearray) -> Iterator[Words]:
    nonce = number.to_bytes(12, "big")
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    words = np.frombuffer(buffer, "<u4", count=CHUNK)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        encryptor.update_into(_ZEROS[: 4 * size], buffer)
        yield words[:size]
