"""Per-user gradients of LoRA matrices, in the one backward pass that training takes anyway.

A LoRA layer computes ``y = W x + s B A x`` with W frozen (Hu et al. 2021, arXiv:2106.09685). With
g the gradient of a row's loss in y, that row's gradients are two thin products of what the
backward pass holds at this point (the book-keeping of Bu et al. 2023, arXiv:2210.00038, where the
gradient itself is so small that no norm needs to be computed first)::

    dL/dB = s  sum_t  g_t (A x_t)^T            (O, r)
    dL/dA = s  sum_t  (B^T g_t) x_t^T          (r, I)

They are added up per user and put where Opacus' optimisers look for them: ``parameter.grad_sample``.
The plain gradient, which would mix users, is never computed.

Axes: R rows, T positions, N = R T, I inputs, O outputs, r rank, U users.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

from handbill.errors import InputError


class LoraGradients:
    """While entered, every backward pass leaves one gradient per user in each ``grad_sample``.

    Use it with our own :class:`~handbill.privacy.optimizer.SecureDPOptimizer`, or with stock
    Opacus: ``PrivacyEngine().make_private(..., grad_sample_mode="no_op", loss_reduction="sum")``.
    The loss must be a sum over rows of losses that depend on one row each.

    A second backward pass adds to the same users' gradients, so a user may be larger than what
    fits into memory at once; ``zero_grad()`` of the optimiser begins anew.

    Args:
        model: A PEFT model. What is trained in it must be A or B of plain LoRA linear layers
            (A may be frozen, as in FFA-LoRA; any rank; biases, DoRA and dropout are refused).

    Raises:
        InputError: Naming the first layer whose gradient would not be exact.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = _trained_layers(model)
        self._row_user: Tensor | None = None
        self._users = 0

    def __enter__(self) -> "LoraGradients":
        for layer in self.layers:
            # An instance attribute goes before the class's method; deleting it undoes this.
            layer.forward = _Forward(layer, self)
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        for layer in self.layers:
            del layer.forward
            if failed:  # half a gradient must not be added to
                for parameter in _matrices(layer):
                    parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus' name

    def assign(self, row_user: Tensor | None, users: int = 0) -> None:
        """Say whose the rows of the next forward passes are.

        Args:
            row_user: Index of each row's user, int64, shape (R,); None makes each row a user.
            users: U, the number of users.

        Raises:
            InputError: A row of no user.
        """
        if row_user is not None:
            if row_user.ndim != 1 or not len(row_user):
                raise InputError(f"row_user has shape {tuple(row_user.shape)}, not (rows,)")
            if not 0 <= int(row_user.min()) <= int(row_user.max()) < users:
                raise InputError(f"row_user must index the {users} users")
        self._row_user, self._users = row_user, users

    def add(self, parameter: nn.Parameter, left_RTM: Tensor, right_RTN: Tensor) -> None:
        """Add each row's ``left^T right`` to the gradient of the row's user, (U, M, N)."""
        rows = torch.bmm(left_RTM.transpose(1, 2), right_RTN).to(parameter.dtype)
        if self._row_user is not None:
            if len(self._row_user) != len(rows):
                raise InputError(
                    f"a LoRA layer saw {len(rows)} rows where {len(self._row_user)} have a user; "
                    "layers that regroup rows (experts, say) cannot be trained privately"
                )
            users = rows.new_zeros((self._users, *rows.shape[1:]))
            rows = users.index_add_(0, self._row_user.to(rows.device), rows)
        held: Any = parameter
        before = getattr(held, "grad_sample", None)
        held.grad_sample = rows if before is None else before.add_(rows)


class _Forward:
    """What a LoRA layer does instead of its own ``forward``."""

    def __init__(self, layer: Any, into: LoraGradients) -> None:
        (name,) = layer.active_adapters
        self.base: nn.Linear = layer.base_layer
        self.a: nn.Parameter = layer.lora_A[name].weight
        self.b: nn.Parameter = layer.lora_B[name].weight
        self.scale: float = layer.scaling[name]
        self.into = into

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = _LoraLinear.apply(x, self.a, self.b, self)  # type: ignore[no-untyped-call]
        return y


def _forward(
    x_NI: Tensor, base: nn.Linear, a_rI: Tensor, b_Or: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return y and A x, of the base's and the adapter's type."""
    y_NO = functional.linear(x_NI, base.weight, base.bias)
    h_Nr = x_NI.to(a_rI.dtype) @ a_rI.T
    if y_NO.dtype == b_Or.dtype:
        return y_NO.addmm_(h_Nr, b_Or.T, alpha=scale), h_Nr
    return y_NO + (h_Nr @ b_Or.T * scale).to(y_NO.dtype), h_Nr


class _LoraLinear(torch.autograd.Function):
    """``y = W x + s B A x``; its backward pass writes per-user gradients of A and B aside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: _Forward) -> Tensor:
        y_NO, h_Nr = _forward(x.reshape(-1, x.shape[-1]), layer.base, a, b, layer.scale)
        # Only a trained A needs x, and x is the largest of what could be kept.
        ctx.save_for_backward(layer.base.weight, a, b, h_Nr, x if a.requires_grad else None)
        ctx.layer, ctx.shape = layer, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight_OI, a_rI, b_Or, h_Nr, x = ctx.saved_tensors
        layer: _Forward = ctx.layer
        rows = ctx.shape[0]
        g_NO = grads[0].reshape(-1, grads[0].shape[-1])
        g_adapter_NO = g_NO.to(b_Or.dtype)
        gh_Nr = g_adapter_NO @ b_Or * layer.scale
        if layer.b.requires_grad:
            h_RTr = (h_Nr * layer.scale).view(rows, -1, h_Nr.shape[1])
            layer.into.add(layer.b, g_adapter_NO.view(rows, -1, len(b_Or)), h_RTr)
        if layer.a.requires_grad:
            x_RTI = x.to(a_rI.dtype).view(rows, -1, x.shape[-1])
            layer.into.add(layer.a, gh_Nr.view(rows, -1, len(a_rI)), x_RTI)
        gx = None
        if ctx.needs_input_grad[0]:
            gx_NI = g_NO @ weight_OI
            if gx_NI.dtype == gh_Nr.dtype:
                gx_NI.addmm_(gh_Nr, a_rI)
            else:
                gx_NI = gx_NI + (gh_Nr @ a_rI).to(gx_NI.dtype)
            gx = gx_NI.view(ctx.shape)
        return gx, None, None, None


def _trained_layers(model: nn.Module) -> list[Any]:
    """Every LoRA layer with something to train; anything else that is trained is refused."""
    layers: list[Any] = []
    handled: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, LoraLinear):
            continue
        matrices = [p for p in _matrices(module) if p.requires_grad]
        if not matrices:
            continue
        _check_plain(name, module)
        layers.append(module)
        handled |= {id(p) for p in matrices}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in handled:
            raise InputError(
                f"{name}: only A and B of LoRA's linear layers can be trained privately; freeze it"
            )
    if not layers:
        raise InputError("the model holds no LoRA layer that is trained")
    return layers


def _matrices(layer: Any) -> list[nn.Parameter]:
    both = [*layer.lora_A.values(), *layer.lora_B.values()]
    return [module.weight for module in both]


def _check_plain(name: str, layer: Any) -> None:
    """Refuse what is not exactly ``W x + s B A x``."""
    refused = {
        "several active adapters": len(layer.active_adapters) != 1,
        "a merged adapter": bool(layer.merged),
        "an adapter that is switched off": bool(layer.disable_adapters),
        "DoRA or another variant": bool(layer.lora_variant),
        "dropout": any(getattr(d, "p", 0.0) > 0 for d in layer.lora_dropout.values()),
        "a bias in the branch": any(b.bias is not None for b in layer.lora_B.values()),
        "a base layer that is no plain linear layer": type(layer.base_layer) is not nn.Linear,
        "a base weight that is trained": any(
            p.requires_grad for p in layer.base_layer.parameters()
        ),
    }
    for what, there in refused.items():
        if there:
            raise InputError(f"{name}: {what} cannot be trained privately with exact gradients")
