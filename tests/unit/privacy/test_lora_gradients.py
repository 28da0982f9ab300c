"""One backward pass gives every user's gradient: the same numbers as one user at a time."""

from contextlib import nullcontext

import pytest
import torch
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from handbill.errors import InputError
from handbill.privacy.lora_gradients import LoraGradients

ROWS, WIDTH, POSITIONS = 6, 10, 5


class Net(nn.Module):
    """Two layers over (rows, positions, width); ``again`` computes the first one twice."""

    def __init__(self, *, again=False):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 7), nn.Linear(7, 3, bias=False)
        self.again = again

    def forward(self, x):
        hidden = checkpoint(self.first, x, use_reentrant=False) if self.again else self.first(x)
        return self.second(torch.tanh(hidden))


def network(*, rank=2, freeze_a=False, dtype=torch.float64, again=False, **config):
    torch.manual_seed(0)
    config = {"r": rank, "lora_alpha": 5, "target_modules": ["first", "second"], **config}
    model = get_peft_model(Net(again=again), LoraConfig(**config)).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
        if freeze_a and "lora_A" in name:
            parameter.requires_grad_(False)
    return model


def data(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(ROWS, POSITIONS, WIDTH, dtype=dtype)


def row_losses(model, x):
    return model(x).pow(2).sum(dim=(1, 2))


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def naive(model, x, row_user):
    """The sum of each user's row gradients by plain autograd, shape (U, everything)."""
    users = [[] for _ in range(max(row_user) + 1)]
    for row, user in zip(x, row_user, strict=True):
        grads = torch.autograd.grad(row_losses(model, row[None]).sum(), trained(model))
        users[user].append(torch.cat([g.flatten() for g in grads]))
    return torch.stack([torch.stack(rows).sum(0) for rows in users])


def found(model):
    return torch.cat([p.grad_sample.flatten(1) for p in trained(model)], dim=1)


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("row_user", [[0, 1, 2, 3, 4, 5], [1, 0, 1, 1, 2, 0]])
def test_it_is_one_user_at_a_time(rank, row_user, again, freeze_a):
    model, x = network(rank=rank, freeze_a=freeze_a, again=again), data()
    expected = naive(model, x, row_user)
    with LoraGradients(model) as gradients:
        gradients.assign(torch.tensor(row_user), max(row_user) + 1)
        row_losses(model, x).sum().backward()
    torch.testing.assert_close(found(model), expected, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_users_whose_rows_come_in_several_batches_add_up():
    model, x = network(), data()
    users = [0, 1, 0, 1, 0, 0]
    with LoraGradients(model) as gradients:
        for start in (0, 2, 4):
            gradients.assign(torch.tensor(users[start : start + 2]), 2)
            row_losses(model, x[start : start + 2]).sum().backward()
    torch.testing.assert_close(found(model), naive(model, x, users))


def test_another_row_never_changes_a_users_gradient():
    model = network()

    def gradients(x):
        with LoraGradients(model):
            row_losses(model, x).sum().backward()
        result = found(model)
        for p in trained(model):
            p.grad_sample = None
        return result

    x = data()
    before = gradients(x)
    x[3] = 1e6
    assert torch.equal(gradients(x)[[0, 1, 2, 4, 5]], before[[0, 1, 2, 4, 5]])


def test_outputs_and_input_gradients_are_pefts():
    model, x = network(), data().requires_grad_()
    plain = model(x)
    (expected,) = torch.autograd.grad(plain.pow(2).sum(), x)
    with LoraGradients(model):
        fused = model(x)
        fused.pow(2).sum().backward()
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(x.grad, expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_it_agrees_with_opacus_hooks():
    model, x = network(dtype=torch.float32), data(torch.float32)
    with LoraGradients(model):
        row_losses(model, x).sum().backward()
    fused = found(model)
    other = network(dtype=torch.float32)
    hooked = GradSampleModule(other, loss_reduction="sum", strict=False)
    row_losses(hooked, x).sum().backward()
    torch.testing.assert_close(fused, found(other), rtol=1e-5, atol=1e-5)


def opacus_training(mode):
    """Weights after three steps of Opacus' own engine and optimiser, without noise."""
    model, x = network(dtype=torch.float32), data(torch.float32)
    private, optimizer, _ = PrivacyEngine(accountant="prv").make_private(
        module=model,
        optimizer=torch.optim.SGD(trained(model), lr=0.1),
        data_loader=DataLoader(TensorDataset(x), batch_size=ROWS),
        noise_multiplier=0.0,
        max_grad_norm=0.3,
        loss_reduction="sum",
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    with LoraGradients(model) if mode == "no_op" else nullcontext():
        for _ in range(3):
            optimizer.zero_grad()
            row_losses(private, x).sum().backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in trained(model)])


def test_opacus_own_engine_and_optimiser_run_on_it():
    start = torch.cat([p.detach().flatten() for p in trained(network(dtype=torch.float32))])
    fused, hooked = opacus_training("no_op"), opacus_training("hooks")
    assert float((fused - start).norm()) > 0.1
    torch.testing.assert_close(fused, hooked, rtol=1e-5, atol=1e-6)


def test_bfloat16_base_with_float32_adapter():
    model, x = network(dtype=torch.float32), data(torch.float32)
    expected = naive(model, x, list(range(ROWS)))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.shape[0] not in (2,):
            frozen = not module.weight.requires_grad
            module.to(torch.bfloat16) if frozen else None
    with LoraGradients(model):
        model(x.bfloat16()).float().pow(2).sum().backward()
    assert found(model).dtype == torch.float32
    assert float((found(model) - expected).norm() / expected.norm()) < 0.03


REFUSED = {
    "DoRA": {"use_dora": True},
    "dropout": {"lora_dropout": 0.1},
    "a bias": {"lora_bias": True},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_not_be_exact_is_refused_by_name(what):
    with pytest.raises(InputError, match=rf"first: {what}.*cannot be trained privately"):
        LoraGradients(network(**REFUSED[what]))


def test_anything_else_that_is_trained_is_refused():
    model = network(modules_to_save=["second"], target_modules=["first"])
    with pytest.raises(InputError, match=r"second.*freeze it"):
        LoraGradients(model)
    embedding = nn.Sequential(nn.Embedding(4, WIDTH), Net())
    adapted = get_peft_model(embedding, LoraConfig(r=2, target_modules=["0", "1.first"]))
    with pytest.raises(InputError, match="lora_embedding"):
        LoraGradients(adapted)
    with pytest.raises(InputError, match="no LoRA layer"):
        LoraGradients(Net().requires_grad_(False))
    merged = network()
    merged.merge_adapter()
    with pytest.raises(InputError, match="a merged adapter"):
        LoraGradients(merged)


def test_rows_of_nobody_and_regrouped_rows_are_refused():
    model, x = network(), data()
    with LoraGradients(model) as gradients:
        for users in ([0, 2], [-1, 0], []):
            with pytest.raises(InputError, match="row_user"):
                gradients.assign(torch.tensor(users, dtype=torch.int64), 2)
        gradients.assign(torch.tensor([0, 1]), 2)
        with pytest.raises(InputError, match="6 rows where 2 have a user"):
            row_losses(model, x).sum().backward()
