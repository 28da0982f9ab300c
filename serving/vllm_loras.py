"""Adapters in vLLM: from our verified files, through memory, under numbers of their own."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save

from handbill.errors import ArtifactError
from handbill.generator.adapters import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from handbill.serving.bank import Bank
from handbill.serving.stacked import Held, Pair

# Norm of what an adapter may add to a layer: a hundred steps of Adam at 0.02 make at most 1,300 of
# SmolLM2's largest. Numbers that run over in one row would reach others: vLLM multiplies masked
# positions by 0, and NaN times 0 is NaN.
_MAX_NORM: Final = 1e4


class LoraBank(Bank):
    """Adapters in vLLM's slots. It never evicts one itself: it has as many slots as we fill.

    Args:
        shapes: See :class:`~handbill.serving.bank.Bank`.
        slots: Adapters in memory.
        max_rank: Largest rank taken.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, slots: int, max_rank: int) -> None:
        super().__init__(shapes, slots=slots, max_rank=max_rank)
        self.engine: Any = None

    def lora(self, held: Held, path: str = "loaded") -> Any:
        """What vLLM knows an adapter by; None for the base model."""
        from vllm.lora.request import LoRARequest

        if not held.load:
            return None
        return LoRARequest(lora_name=str(held.load), lora_int_id=held.load, lora_path=path)

    def _fill(self, held: Held, pairs: Mapping[str, Pair]) -> None:
        for module, (a, b) in pairs.items():
            norm = float(a.norm() * b.norm())
            if not norm <= _MAX_NORM:
                raise ArtifactError(
                    f"adapter of {module}: its norm is up to {norm:.3g}, and this service takes "
                    f"{_MAX_NORM:g}"
                )
        # vLLM reads adapters from folders: this one holds a link to anonymous memory.
        rank = max((a.shape[0] for a, _ in pairs.values()), default=1)
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank,  # the adapter's own scaling is in B already
            "target_modules": sorted({module.rpartition(".")[2] for module in pairs}),
        }
        weights = os.memfd_create("adapter")
        try:
            with os.fdopen(os.dup(weights), "wb") as file:
                file.write(save(_halves(pairs)))
            with tempfile.TemporaryDirectory(prefix="hb-lora-") as folder:
                (Path(folder) / CONFIG_FILE).write_text(json.dumps(config))
                (Path(folder) / WEIGHTS_FILE).symlink_to(f"/proc/{os.getpid()}/fd/{weights}")
                self.engine.add_lora(self.lora(held, folder))
        finally:
            os.close(weights)

    def _empty(self, held: Held) -> None:
        self.engine.remove_lora(held.load)


def _halves(pairs: Mapping[str, Pair]) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """An adapter's tensors under PEFT's names."""
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.contiguous().numpy()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.T.contiguous().numpy()
    return tensors
