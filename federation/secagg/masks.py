"""Masks: keystreams of AES-256 in counter mode, added to a vector modulo 2^32.

A key is derived for one session and one use; a keystream that hid two vectors would give away
their difference.
"""

from collections.abc import Iterable, Iterator
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
_ZEROS: Final = bytes(4 * CHUNK)
_BUFFER_BYTES: Final = 4 * CHUNK + 16  # update_into asks for a block more than it writes


def derive(secret: bytes, *, transcript: bytes, use: str) -> bytes:
    """A key for one use in one session: HKDF-SHA256, salted with the session's transcript."""
    info = LABEL + use.encode()
    return HKDF(SHA256(), length=KEY_BYTES, salt=transcript, info=info).derive(secret)


def add_masks(vector: Words, masks: Iterable[tuple[bytes, Sign]]) -> None:
    """Add keys' keystreams to a vector in place, or take them away; wraps modulo 2^32.

    A piece of the vector gets all its masks before the next: it is read from memory once, not
    once for every mask.

    Args:
        vector: Contiguous, shape (d,).
        masks: Keys of 32 bytes, never used for another vector; 1 adds, -1 subtracts.
    """
    buffer = bytearray(_BUFFER_BYTES)
    streams = [
        (keystream(key, vector.size, buffer=buffer), np.add if sign > 0 else np.subtract)
        for key, sign in masks
    ]
    for start in range(0, vector.size, CHUNK):
        part = vector[start : start + CHUNK]
        for stream, combine in streams:
            combine(part, next(stream), out=part)


def keystream(key: bytes, count: int, *, buffer: bytearray | None = None) -> Iterator[Words]:
    """The first ``count`` words of a key's keystream, :data:`CHUNK` at a time.

    It is that of AES-256-GCM (NIST SP 800-38D, section 6.5: counter mode from block 2) under a nonce
    of zeros, whose tag nobody asks for: OpenSSL runs it on wider registers than plain counter mode.

    Args:
        key: 32 bytes.
        count: Words.
        buffer: Where they are written; the next piece overwrites them, of whichever key.
    """
    encryptor = Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()
    buffer = bytearray(_BUFFER_BYTES) if buffer is None else buffer
    words = np.frombuffer(buffer, "<u4", count=CHUNK)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        encryptor.update_into(_ZEROS[: 4 * size], buffer)
        yield words[:size]
