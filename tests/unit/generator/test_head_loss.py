import pytest
import torch
from torch.nn import functional

from handbill.generator import head_loss
from handbill.generator.head_loss import token_divergences, token_losses


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_losses_and_gradients_are_those_of_whole_logits(monkeypatch, chunk):
    monkeypatch.setattr(head_loss, "_CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, requires_grad=True)
    head, targets, weights = torch.randn(11, 5), torch.randint(0, 11, (7,)), torch.rand(7)
    whole = functional.cross_entropy(hidden @ head.T, targets, reduction="none")
    (expected,) = torch.autograd.grad((whole * weights).sum(), hidden)
    losses = token_losses(hidden, head, targets)
    (found,) = torch.autograd.grad((losses * weights).sum(), hidden)
    torch.testing.assert_close(losses, whole)
    torch.testing.assert_close(found, expected)


def test_without_gradients_the_losses_are_the_same():
    hidden, head, targets = torch.randn(4, 5), torch.randn(11, 5), torch.tensor([0, 10, 3, 3])
    with torch.inference_mode():
        losses = token_losses(hidden, head, targets)
    torch.testing.assert_close(
        losses, functional.cross_entropy(hidden @ head.T, targets, reduction="none")
    )


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_divergences_and_gradients_are_those_of_whole_logits(monkeypatch, chunk):
    monkeypatch.setattr(head_loss, "_CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, requires_grad=True)
    wanted, head, weights = torch.randn(7, 5), torch.randn(11, 5), torch.rand(7)
    own_log, wanted_log = ((x @ head.T).log_softmax(1) for x in (hidden, wanted))
    whole = functional.kl_div(own_log, wanted_log, reduction="none", log_target=True).sum(1)
    (expected,) = torch.autograd.grad((whole * weights).sum(), hidden)
    found = token_divergences(hidden, wanted, head)
    torch.testing.assert_close(found, whole)
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden)
    torch.testing.assert_close(gradient, expected)
    with torch.inference_mode():
        torch.testing.assert_close(token_divergences(wanted, wanted, head), torch.zeros(7))
