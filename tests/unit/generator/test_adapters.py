"""Reading adapters: what the safetensors library reads, of LoRA's form, and nothing else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from handbill.errors import ArtifactError
from handbill.generator.adapters import CONFIG_FILE, WEIGHTS_FILE, read_adapter

CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4.0}).encode()
TENSORS = {
    f"{layer}.lora_{half}.weight": np.arange(size, dtype=np.float32).reshape(shape) + 1
    for layer in ("down", "up")
    for half, shape, size in (("A", (2, 3), 6), ("B", (5, 2), 10))
}


def read(folder, data):
    return read_adapter(folder, files={CONFIG_FILE: CONFIG, WEIGHTS_FILE: data}).tensors


def header(**changes):
    """A file whose header differs in the entry of one tensor."""
    data = save(TENSORS)
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    entries["up.lora_B.weight"] |= changes
    return with_header(json.dumps(entries).encode())


def with_header(text):
    data = save(TENSORS)
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def test_it_reads_what_the_library_reads_wherever_the_numbers_begin(tmp_path):
    for pad in range(4):
        found = read(tmp_path, with_header(header()[8:].split(b"}}")[0] + b"}}" + b" " * pad))
        for name, value in TENSORS.items():
            np.testing.assert_array_equal(found[name], value)
    assert found.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (header(data_offsets=[88, 127]), "not a readable adapter"),
        (header(data_offsets=[84, 124]), "not a readable adapter"),
        (header(data_offsets=[-40, 0]), "not a readable adapter"),
        (header(data_offsets=[88.0, 128.0]), "not a readable adapter"),
        (header(shape=[-5, -2]), "not a readable adapter"),
        (header(shape=[5.0, 2]), "not a readable adapter"),
        (header(shape="52"), "not a readable adapter"),
        (header(dtype="F16"), "not a readable adapter"),
        (header(dtype="I32"), "not finite float32"),
        (header() + bytes(4), "not a readable adapter"),
        (header() + bytes(3), "not a readable adapter"),
        (header()[:-4], "not "),
        (with_header(b'{"a": {}, "a": {}}'), "twice"),
        (with_header(b"[" * 100_000), "not a readable adapter"),
        (with_header(b"{}"), "not a readable adapter"),
        (header()[:8], "empty"),
        (save({**TENSORS, "up.lora_A.weight": np.full((2, 3), np.nan, np.float32)}), "'up.lora_A"),
        (save({**TENSORS, "up.lora_B.weight": np.full((5, 2), np.inf, np.float32)}), "'up.lora_B"),
        (save({"up.lora_A.weight": TENSORS["up.lora_A.weight"]}), "not one half"),
    ],
)
def test_what_is_no_plain_adapter_is_refused(tmp_path, data, match):
    with pytest.raises(ArtifactError, match=match):
        read(tmp_path, data)


@settings(max_examples=300, deadline=None)
@given(where=st.floats(0, 1), change=st.binary(min_size=1, max_size=3), removed=st.integers(0, 3))
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(
    tmp_path_factory, where, change, removed
):
    data = save(TENSORS)
    at = int(where * (len(data) - 1))
    damaged = data[:at] + change + data[at + removed :]
    try:
        found = read(tmp_path_factory.getbasetemp(), damaged)
    except ArtifactError:
        return
    try:
        want = load(damaged)
    except SafetensorError as error:
        pytest.fail(f"read what the library refuses: {error}")
    assert found.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(found[name], value)
