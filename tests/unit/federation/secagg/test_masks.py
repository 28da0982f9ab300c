"""Masks: the stream of a known cipher, taken away as it was added, with no seed ever shared."""

import ast
import secrets
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import handbill.federation.secagg
from handbill.federation.secagg.masks import CHUNK, SEGMENT, add_masks, derive
from handbill.federation.secagg.masks import keystream as pieces

KEY = bytes(range(32))


def keystream(key, count):
    """All pieces as one."""
    none = np.empty(0, np.uint32)
    return np.concatenate([none, *(piece.copy() for piece in pieces(key, count))])


def counter_mode(nonce, count):
    """A second way to the stream of one nonce: plain counter mode from GCM's second block."""
    second_block = modes.CTR(nonce.to_bytes(12, "big") + (2).to_bytes(4, "big"))
    return Cipher(algorithms.AES(KEY), second_block).encryptor().update(bytes(4 * count))


def test_the_stream_is_aes_256_in_counter_mode():
    # McGrew and Viega, The Galois/Counter Mode of Operation, test case 14: all zeros.
    assert keystream(bytes(32), 4).tobytes().hex() == "cea7403d4d606b6e074ec5d3baf39d18"
    assert keystream(KEY, 2 * CHUNK + 9).tobytes() == counter_mode(0, 2 * CHUNK + 9)


def test_every_segment_has_a_nonce_of_its_own():
    whole = keystream(KEY, 2 * SEGMENT + 5).tobytes()
    assert whole == counter_mode(0, SEGMENT) + counter_mode(1, SEGMENT) + counter_mode(2, 5)


def test_chunks_join_into_one_stream():
    # The second chunk begins where the first ends: a chunk is CHUNK words.
    whole = keystream(KEY, 3 * CHUNK + 5)
    assert np.array_equal(whole[: CHUNK + 9], keystream(KEY, CHUNK + 9))
    assert not np.array_equal(whole[:1000], whole[CHUNK : CHUNK + 1000])


@given(st.integers(0, 70_000), st.binary(min_size=32, max_size=32))
@settings(max_examples=30)
def test_what_was_added_can_be_taken_away(count, key):
    vector = np.arange(count, dtype=np.uint32) * np.uint32(2654435761)
    masked = vector.copy()
    add_masks(masked, [(key, 1)])
    assert count < 4 or not np.array_equal(masked, vector)
    add_masks(masked, [(key, -1)])
    assert np.array_equal(masked, vector)


@pytest.mark.parametrize("size", [0, 1, CHUNK, SEGMENT, SEGMENT + 1, 3 * SEGMENT - CHUNK + 7])
def test_masks_added_together_are_the_sum_of_their_streams(size):
    keys = [secrets.token_bytes(32) for _ in range(4)]
    signs = (1, -1, -1, 1)
    vector = np.arange(size, dtype=np.uint32)
    wanted = vector.copy()
    for key, sign in zip(keys, signs, strict=True):
        wanted += keystream(key, wanted.size) if sign > 0 else -keystream(key, wanted.size)
    add_masks(vector, zip(keys, signs, strict=True))
    assert np.array_equal(vector, wanted)


def test_every_bit_of_a_key_counts():
    base = keystream(KEY, 64)
    for bit in range(256):
        flipped = bytearray(KEY)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not np.any(keystream(bytes(flipped), 64) == base)


@pytest.mark.parametrize("use", ["self", "pair\0a\0b", "share\0a\0b"])
def test_keys_differ_by_secret_session_and_use(use):
    key = derive(b"s" * 32, transcript=b"t" * 32, use=use)
    assert len(key) == 32
    others = [
        derive(b"r" * 32, transcript=b"t" * 32, use=use),
        derive(b"s" * 32, transcript=b"u" * 32, use=use),
        derive(b"s" * 32, transcript=b"t" * 32, use=use + "x"),
    ]
    assert len({key, *others}) == 4


def test_a_masked_constant_looks_like_noise():
    # 10 million words. Each p value is below 1e-4 by chance once in 10 000 runs.
    words = np.zeros(10_000_000, np.uint32)
    add_masks(words, [(secrets.token_bytes(32), 1)])
    bits = np.unpackbits(words.view(np.uint8))
    ones = int(bits.sum())
    assert stats.binomtest(ones, bits.size).pvalue > 1e-4
    changes = int(np.count_nonzero(bits[1:] != bits[:-1]))
    assert stats.binomtest(changes, bits.size - 1).pvalue > 1e-4
    for byte in words.view(np.uint8).reshape(-1, 4).T:
        assert stats.chisquare(np.bincount(byte, minlength=256)).pvalue > 1e-4


def test_no_other_generator_is_used_in_the_package():
    folder = Path(handbill.federation.secagg.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not names & {"random", "numpy.random", "torch"}, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"random", "RandomState", "default_rng"}, path
