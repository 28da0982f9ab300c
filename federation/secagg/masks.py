"""Masks: keystreams of AES-256 in counter mode, added to a vector modulo 2^32.

A key is derived for one session and one use; a keystream that hid two vectors would give away
their difference.
"""

from typing import Any, Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

Words = NDArray[np.uint32]

KEY_BYTES: Final = 32
LABEL: Final = b"handbill/v1/secagg/"
_CHUNK_BYTES: Final = 1 << 18  # of keystream at a time: stays in the processor's cache
_ZEROS: Final = bytes(_CHUNK_BYTES)
_SLACK: Final = 16  # update_into asks for a block more than it writes


def derive(secret: bytes, *, transcript: bytes, use: str) -> bytes:
    """A key for one use in one session: HKDF-SHA256, salted with the session's transcript."""
    info = LABEL + use.encode()
    return HKDF(SHA256(), length=KEY_BYTES, salt=transcript, info=info).derive(secret)


def add_mask(vector: Words, key: bytes, *, sign: Literal[1, -1] = 1) -> None:
    """Add a key's keystream to a vector in place, or take it away; wraps modulo 2^32.

    Args:
        vector: Contiguous, shape (d,).
        key: 32 bytes, never used for another vector.
        sign: 1 adds, -1 subtracts.
    """
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    buffer = bytearray(_CHUNK_BYTES + _SLACK)
    stream = np.frombuffer(buffer, "<u4", count=_CHUNK_BYTES // 4)
    combine: Any = np.add if sign > 0 else np.subtract
    for start in range(0, vector.size, stream.size):
        part = vector[start : start + stream.size]
        encryptor.update_into(_ZEROS[: 4 * part.size], buffer)
        combine(part, stream[: part.size], out=part)


def keystream(key: bytes, count: int) -> Words:
    """The first ``count`` words of a key's keystream."""
    words = np.zeros(count, np.uint32)
    add_mask(words, key)
    return words
