"""The gate between an aggregate and its commit: no round may make the shared adapter much worse."""

import numpy as np

from handbill.errors import RoundError
from handbill.generator.adapters import Tensors
from handbill.generator.base_models import BaseModel
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import InterestSpec
from handbill.generator.lora import LoraModel
from handbill.generator.model_specs import ModelSpec
from handbill.server.probe import interest_probe_loss, probe_loss
from handbill.server.settings import ServerSettings


class Gate:
    """Measures adapters on the probe texts, each once.

    Args:
        settings: Say where to measure and how much worse a round may be.
        base: What the adapters are for.
        spec: Their form.
        model: A model to use instead of loading one at the first measurement.
    """

    def __init__(
        self,
        settings: ServerSettings,
        base: BaseModel,
        spec: ModelSpec,
        *,
        model: LoraModel | None = None,
    ) -> None:
        self._settings, self._base, self._spec = settings, base, spec
        self._model = model
        self._known: tuple[str | None, float] = (None, 0.0)  # last artifact and its probe loss

    def check(self, parent: str, before: Tensors, after: Tensors) -> tuple[float, float]:
        """Refuse weights that are not finite or that write much worse on the probe texts.

        Args:
            parent: Digest of the artifact that holds ``before``; empty for the first round.
            before: The weights the round began with.
            after: The weights it would commit.

        Returns:
            The probe loss of both, in nats a token, or a row for a model of interest.

        Raises:
            RoundError: They may not be committed.
        """
        if not all(np.isfinite(value).all() for value in after.values()):
            raise RoundError("the aggregate holds NaN or infinity")
        if self._known[0] != parent:
            self._known = (parent, self._loss(before))
        old, new = self._known[1], self._loss(after)
        if not new <= old + self._settings.gate_nats:
            raise RoundError(
                f"the aggregate raises the probe loss from {old:.2f} to {new:.2f} nats a token, "
                f"more than gate_nats={self._settings.gate_nats} allows"
            )
        return old, new

    def passed(self, digest: str, loss: float) -> None:
        """Remember what a committed artifact measured: the next round begins with it."""
        self._known = (digest, loss)

    def _loss(self, weights: Tensors) -> float:
        if isinstance(self._spec, InterestSpec):
            return interest_probe_loss(InterestModel(self._spec), weights)
        if self._model is None:
            self._model = LoraModel(self._base, self._spec, device=self._settings.device)
        return probe_loss(self._model, weights, self._settings.recipe)
