"""The warm-up on a shop's catalogue: ordinary training, and not a shopper in it."""

import numpy as np
import pytest
import torch

from handbill.clients.warmup import plain_step
from handbill.errors import InputError
from handbill.generator.prompts import CopyRequest, Example, encode_example

ROWS = [
    Example(user="", item="", request=CopyRequest(title=title), text=text)
    for title, text in (
        ("Oak lamp", "Warm light."),
        ("Blue mug", "Holds a pint of tea, and keeps it warm."),
        ("Kettle", "Boils."),
    )
]


@pytest.mark.parametrize("batch_rows", [1, 2, 8])
def test_the_step_is_that_of_plain_sgd_whatever_the_batches(tiny_model, batch_rows):
    rows = [
        encode_example(tiny_model.tokenizer, row, max_prompt_tokens=64, max_copy_tokens=32)
        for row in ROWS
    ]
    start = {n: np.full(shape, 0.01, np.float32) for n, shape in tiny_model.shapes.items()}
    tiny_model.load(start)
    update = plain_step(tiny_model, rows, learning_rate=0.5, batch_rows=batch_rows)
    assert all(np.array_equal(v, start[n]) for n, v in tiny_model.tensors().items())

    parameters = list(tiny_model.trained.values())
    sgd = torch.optim.SGD(parameters, lr=0.5)
    tiny_model.row_losses(rows).mean().backward()
    sgd.step()
    sgd.zero_grad()
    for name, after in tiny_model.tensors().items():
        assert update[name].any()
        np.testing.assert_allclose(update[name], after - start[name], rtol=1e-4, atol=1e-8)


def test_without_a_row_there_is_no_step(tiny_model):
    with pytest.raises(InputError, match="is there a row"):
        plain_step(tiny_model, [], learning_rate=1.0, batch_rows=4)
