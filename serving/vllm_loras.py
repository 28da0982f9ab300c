"""Adapters in vLLM: from our verified files, through memory, under numbers of their own."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from safetensors.numpy import save

from handbill.errors import ArtifactError
from handbill.generator.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter
from handbill.serving.bank import Bank
from handbill.serving.stacked import Pair

# Norm of what an adapter may add to a layer: a hundred steps of Adam at 0.02 make at most 1,300 of
# SmolLM2's largest. Numbers that run over in one row would reach others: vLLM multiplies masked
# positions by 0, and NaN times 0 is NaN.
_MAX_NORM: Final = 1e4


class Files(NamedTuple):
    """An adapter in PEFT's layout."""

    config: str
    weights: bytes


class LoraBank(Bank[Files]):
    """Adapters in vLLM's slots. It never evicts one itself: it has as many slots as we fill.

    Args:
        shapes: See :class:`~handbill.serving.bank.Bank`.
        slots: Adapters in memory.
        max_rank: Largest rank taken.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, slots: int, max_rank: int) -> None:
        super().__init__(shapes, slots=slots, max_rank=max_rank)
        self.engine: Any = None

    def lora(self, number: int, path: str = "loaded") -> Any:
        """What vLLM knows an adapter by; None for the base model."""
        from vllm.lora.request import LoRARequest

        if not number:
            return None
        return LoRARequest(lora_name=str(number), lora_int_id=number, lora_path=path)

    def _lay_out(self, pairs: Mapping[str, Pair], adapter: Adapter) -> Files:
        for module, (a, b) in pairs.items():
            norm = float(np.linalg.norm(a) * np.linalg.norm(b) * adapter.scaling)
            if not norm <= _MAX_NORM:
                raise ArtifactError(
                    f"adapter of {module}: its norm is up to {norm:.3g}, and this service takes "
                    f"{_MAX_NORM:g}"
                )
        config = {
            "peft_type": "LORA",
            "r": adapter.rank,
            "lora_alpha": adapter.rank,  # the adapter's own scaling is put into B
            "target_modules": sorted({module.rpartition(".")[2] for module in pairs}),
        }
        scaling = np.float32(adapter.scaling)
        tensors = {
            name: value * scaling if ".lora_B." in name else value
            for name, value in adapter.tensors.items()
        }
        return Files(json.dumps(config), save(tensors))

    def _fill(self, number: int, prepared: Files) -> None:
        # vLLM reads adapters from folders: this one holds a link to anonymous memory.
        weights = os.memfd_create("adapter")
        try:
            with os.fdopen(os.dup(weights), "wb") as file:
                file.write(prepared.weights)
            with tempfile.TemporaryDirectory(prefix="hb-lora-") as folder:
                (Path(folder) / CONFIG_FILE).write_text(prepared.config)
                (Path(folder) / WEIGHTS_FILE).symlink_to(f"/proc/{os.getpid()}/fd/{weights}")
                self.engine.add_lora(self.lora(number, folder))
        finally:
            os.close(weights)

    def _empty(self, number: int) -> None:
        self.engine.remove_lora(number)
