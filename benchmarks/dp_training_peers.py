"""One training step of LoRA the stock way, every Opacus way, and ours: same model, same batch."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from handbill.generator.adapters import ALL_LINEAR
from handbill.generator.base_models import load_base, resolve_base
from handbill.generator.head_loss import token_losses
from handbill.generator.lean import keep_less
from handbill.privacy.lora_gradients import LoraGradients
from handbill.privacy.optimizer import SecureDPOptimizer

MODES = ("stock", "equal loss", "hooks", "functorch", "ghost", "one at a time", "ours")
SIGMA, CLIP, RATE = 0.5, 0.5, 1e-4

Step = Callable[[Tensor], None]


def load(dtype: torch.dtype = torch.float32) -> nn.Module:
    """SmolLM2-135M under PEFT, LoRA on all linear layers, A and B trained."""
    model, _ = load_base(resolve_base("smollm2-135m"), device="cpu", dtype="float32")
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(ALL_LINEAR), task_type="CAUSAL_LM")
    torch.manual_seed(1)
    peft = get_peft_model(model, config).train()
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return peft.to(dtype)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """What is trained."""
    return [p for p in model.parameters() if p.requires_grad]


def whole_logits_losses(model: Any, rows: Tensor) -> Tensor:
    """Mean loss of each row from whole logits, as a user of stock Opacus would write it."""
    logits = model(input_ids=rows).logits[:, :-1]
    losses = functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
    return losses.mean(dim=1)


def chunked_losses(model: Any, rows: Tensor) -> Tensor:
    """Mean loss of each row by the product's output loss."""
    inner = model.base_model.model
    hidden = inner.model(rows, use_cache=False).last_hidden_state[:, :-1]
    losses = token_losses(hidden.flatten(0, 1), inner.lm_head.weight, rows[:, 1:].flatten())
    return losses.view(len(rows), -1).mean(dim=1)


def build(mode: str) -> Step:
    """A function that takes one whole step on a batch of token ids (rows, positions)."""
    model = load()
    plain = torch.optim.AdamW(trained(model), lr=RATE)
    return {
        "stock": _stock,
        "equal loss": _equal_loss,
        "hooks": _hooks,
        "functorch": _functorch,
        "ghost": _ghost,
        "one at a time": _one_at_a_time,
        "ours": _ours,
    }[mode](model, plain)


def _stock(model: Any, optimizer: Any) -> Step:
    def step(rows: Tensor) -> None:
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _equal_loss(model: Any, optimizer: Any) -> Step:
    def step(rows: Tensor) -> None:
        chunked_losses(model, rows).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _hooks(model: Any, plain: Any, *, functorch: bool = False) -> Step:
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False, force_functorch=functorch)
    optimizer = DPOptimizer(
        plain,
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=1,
        loss_reduction="sum",
    )

    def step(rows: Tensor) -> None:
        whole_logits_losses(wrapped, rows).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _functorch(model: Any, plain: Any) -> Step:
    return _hooks(model, plain, functorch=True)


def _ghost(model: Any, plain: Any) -> Step:
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="sum", strict=False
    )
    optimizer = DPOptimizerFastGradientClipping(
        plain,
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    criterion = DPLossFastGradientClipping(
        wrapped, optimizer, nn.CrossEntropyLoss(reduction="sum"), loss_reduction="sum"
    )

    def step(rows: Tensor) -> None:
        logits = wrapped(input_ids=rows).logits[:, :-1]
        shape = logits.shape
        loss = criterion(logits.flatten(0, 1), rows[:, 1:].flatten(), shape=shape)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _one_at_a_time(model: Any, plain: Any) -> Step:
    def step(rows: Tensor) -> None:
        parameters = trained(model)
        sums = [torch.zeros_like(p) for p in parameters]
        for row in rows:
            grads = torch.autograd.grad(chunked_losses(model, row[None]).sum(), parameters)
            norm = torch.sqrt(sum((g * g).sum() for g in grads))
            factor = (CLIP / norm).clamp(max=1.0)
            for total, grad in zip(sums, grads, strict=True):
                total.add_(grad * factor)
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total + torch.randn_like(total) * SIGMA * CLIP
        plain.step()
        plain.zero_grad()

    return step


def _ours(model: Any, plain: Any) -> Step:
    optimizer = SecureDPOptimizer(
        plain, noise_multiplier=SIGMA, clipping_norm=CLIP, expected_users=1.0
    )
    keep_less(model)
    LoraGradients(model).__enter__()  # for the life of this process

    def step(rows: Tensor) -> None:
        chunked_losses(model, rows).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def relative_gradient_error() -> dict[str, float]:
    """The worst user's relative error against one user at a time in float64, at the real model.

    Returns:
        Under ``""`` with our gradients in float32, under ``_float64`` in float64.
    """
    torch.manual_seed(2)
    rows = torch.randint(100, 49000, (4, 64))
    exact = load(torch.float64)
    for name, module in list(exact.named_modules()):
        if name.endswith("norm"):  # transformers' own rounds to float32 whatever it is given
            norm = nn.RMSNorm(module.weight.shape, module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            exact.set_submodule(name, norm)
    parameters = trained(exact)
    naive = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(chunked_losses(exact, row[None]).sum(), parameters)
            ]
        )
        for row in rows
    ]
    errors = {}
    for name, dtype in (("", torch.float32), ("_float64", torch.float64)):
        model = load(dtype)
        keep_less(model)
        with LoraGradients(model):
            chunked_losses(model, rows).sum().backward()
        mine = torch.cat([p.grad_sample.flatten(1).double() for p in trained(model)], dim=1)
        errors[name] = max(
            float((one - other).norm() / other.norm())
            for one, other in zip(mine, naive, strict=True)
        )
    return errors


def reset_peak() -> None:
    """Forget the process's peak memory so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Peak resident memory since :func:`reset_peak`, MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0
