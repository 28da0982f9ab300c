"""What a server says to the merchant of these tests."""

import numpy as np
import pytest

from handbill.federation.messages import Instruction, sign


@pytest.fixture
def instruct(tiny_base, tiny_model):
    """A signed instruction as bytes: ``instruct(key, recipe=..., **fields)``, round 1 to shop-a unless they say."""

    def make(key, *, weights=None, **given):
        fields = {
            "merchant": "shop-a",
            "run": "run-1",
            "round": 1,
            "attempt": 0,
            "stage": "global",
            "parent": "",
            "base_digest": tiny_base.digest,
            "spec": tiny_model.spec,
            "expires_at": 4e9,
            **given,
        }
        zeros = {n: np.zeros(s, np.float32) for n, s in tiny_model.shapes.items()}
        tensors = {} if fields["stage"] == "ping" else weights or zeros
        return sign(Instruction(**fields), tensors, key).to_bytes()

    return make
