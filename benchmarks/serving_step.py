"""Where the time of one decode step goes, with transformers' forward and with the engine's own.

Every row runs its own rank-8 adapter on all linear layers of SmolLM2-135M. *Before* is the
forward of transformers, with an adapter's stack beside every linear layer and a preallocated
cache; *after* is ``serving.llama``. Both choose the next token of every row, and must choose
the same. The matrix products of a step (base and adapters) are also timed alone: the rest of
the step is overhead.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from handbill.generator.adapters import PREFIX, Adapter
from handbill.generator.base_models import load_base, resolve_base
from handbill.serving.bank import AdapterBank
from handbill.serving.cache import PromptCache, SlotCache
from handbill.serving.llama import Llama, Span
from handbill.serving.sampling import Chooser
from handbill.serving.sequences import Sampling
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "serving_step.json"
ROWS: Final = (1, 8, 16, 32)
PROMPT: Final = 64
POSITIONS: Final = 256
RANK: Final = 8
NOTES: Final = (
    "One decode step of SmolLM2-135M, float32, after a prompt of 64 tokens, choosing greedily. "
    "adapters true: every row has its own rank-8 adapter on all seven linear layers of every "
    "layer; false: the base model. before: transformers' forward with a stack of adapters beside "
    "every linear layer; after: handbill.serving.llama; both chose the same tokens. products_ms: "
    "the same matrix products alone, base and adapters; overhead_share: the part of the step that "
    "is not its products. Medians over interleaved repetitions, with the range of the speed-up; "
    "metrics are of rows with adapters."
)


class StackBeside(nn.Module):
    """One linear layer, and every row's own adapter beside it."""

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base, self.a, self.b = base, a, b  # (rows, in, rank), (rows, rank, out)
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.rows:
            return y
        return torch.baddbmm(y, torch.bmm(x, self.a[: self.rows]), self.b[: self.rows])


class Layer(CacheLayerMixin):  # type: ignore[misc]
    """Preallocated keys and values; rows have their own lengths."""

    def __init__(self, state: "Before") -> None:
        super().__init__()
        self.state = state

    def lazy_initialization(self, keys: Tensor, _: Tensor) -> None:
        self.keys = keys.new_zeros(ROWS[-1], keys.shape[1], POSITIONS, keys.shape[3])
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        rows, at = keys.shape[0], self.state.lengths
        for stored, new in ((self.keys, keys), (self.values, values)):
            if new.shape[2] > 1:
                stored[:rows, :, : new.shape[2]] = new
            else:
                stored[torch.arange(rows), :, at] = new[:, :, 0]
        seen = int(at.max()) + 1
        return self.keys[:rows, :, :seen], self.values[:rows, :, :seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return int(self.state.lengths.max()) + query_length, 0

    def get_seq_length(self) -> int:
        return int(self.state.lengths.max())

    def get_max_length(self) -> int:
        return POSITIONS


class Before:
    """transformers' forward."""

    def __init__(self, model: Any, adapters: list[Adapter]) -> None:
        self.model = model
        self.stacks = []
        for name in _linears(model):
            parent, _, last = name.rpartition(".")
            a, b = zip(*(_pair(adapter, name) for adapter in adapters), strict=True)
            base = model.get_submodule(name)
            stack = StackBeside(base, torch.stack(a).transpose(1, 2), torch.stack(b))
            setattr(model.get_submodule(parent), last, stack)
            self.stacks.append(stack)

    def start(self, prompts: Tensor, *, adapters: bool) -> Tensor:
        rows, length = prompts.shape
        for stack in self.stacks:
            stack.rows = rows if adapters else 0
        self.lengths = torch.full((rows,), length - 1)
        self.cache = Cache(layers=[Layer(self) for _ in self.model.model.layers])
        mask = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, 1, length, length)
        return self._forward(prompts, mask, torch.arange(length).expand(rows, length))

    def step(self, tokens: Tensor) -> Tensor:
        self.lengths += 1
        seen = torch.arange(int(self.lengths.max()) + 1)
        mask = (seen[None] <= self.lengths[:, None])[:, None, None]
        return self._forward(tokens[:, None], mask, self.lengths[:, None])

    def products(self, rows: int) -> Callable[[], object]:
        inputs = {s.base.in_features: torch.randn(rows, 1, s.base.in_features) for s in self.stacks}
        head = self.model.lm_head
        hidden = torch.randn(rows, 1, head.in_features)

        def run() -> None:
            for stack in self.stacks:
                stack(inputs[stack.base.in_features])
            head(hidden)

        return run

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]


class After:
    """The engine's forward."""

    def __init__(self, model: Any, adapters: list[Adapter]) -> None:
        self.model = Llama(model, positions=POSITIONS)
        self.bank = AdapterBank(self.model.stacks, slots=len(adapters), max_rank=RANK)
        for number, adapter in enumerate(adapters):
            self.bank.put(str(number), self.bank.prepare(adapter))

    def start(self, prompts: Tensor, *, adapters: bool) -> Tensor:
        rows, length = prompts.shape
        held = [self.bank.acquire(str(i) if adapters else "") for i in range(rows)]
        caches = [PromptCache(self.model.cache_shape, length) for _ in held]
        spans = [
            Span(cache.extend(length), self.bank.changes(one))
            for cache, one in zip(caches, held, strict=True)
        ]
        ends = [length * (i + 1) - 1 for i in range(rows)]
        logits = self.model.forward(prompts.flatten(), spans, ends)
        self.cache = SlotCache(self.model.cache_shape, max_rows=rows, max_positions=POSITIONS)
        for cache in caches:
            self.cache.join(cache)
        self.changes = self.bank.gather(held, rows)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        span = Span(self.cache.extend(len(tokens)), self.changes)
        return self.model.forward(tokens, [span], range(len(tokens)))

    def products(self, rows: int) -> Callable[[], object]:
        stacks = dict.fromkeys(stack for stack, _ in self.model.stacks.values())
        inputs = {stack.product.width: torch.randn(rows, stack.product.width) for stack in stacks}
        runs = [(slice(0, rows), self.changes)]

        def run() -> None:
            for stack in stacks:
                stack(inputs[stack.product.width], runs)

        return run


def _linears(model: Any) -> list[str]:
    named = model.named_modules()
    return [name for name, m in named if isinstance(m, nn.Linear) and name != "lm_head"]


def _random_adapter(model: Any, seed: int) -> Adapter:
    draws = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in _linears(model):
        base = model.get_submodule(name)
        a = torch.randn(RANK, base.in_features, generator=draws) / base.in_features**0.5
        b = torch.randn(base.out_features, RANK, generator=draws) * 0.02
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.numpy()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.numpy()
    return Adapter(rank=RANK, alpha=2.0 * RANK, tensors=tensors)


def _pair(adapter: Adapter, name: str) -> tuple[Tensor, Tensor]:
    a = torch.from_numpy(adapter.tensors[f"{PREFIX}{name}.lora_A.weight"])
    b = torch.from_numpy(adapter.tensors[f"{PREFIX}{name}.lora_B.weight"])
    return a, b.T * adapter.scaling


def choose(choosers: list[Chooser], logits_BV: Tensor) -> list[int]:
    return [
        chooser.choose(logits_V)
        for chooser, logits_V in zip(choosers, logits_BV.float(), strict=True)
    ]


def run(way: Before | After, prompts: Tensor, *, adapters: bool, steps: int) -> dict[str, Any]:
    """Milliseconds of a step and of its products, and the tokens that were chosen."""
    rows = len(prompts)
    choosers = [Chooser(Sampling(), (1,)) for _ in range(rows)]
    tokens = [choose(choosers, way.start(prompts, adapters=adapters))]
    tokens.append(choose(choosers, way.step(torch.tensor(tokens[-1]))))  # warm
    begun = time.perf_counter()
    for _ in range(steps):
        tokens.append(choose(choosers, way.step(torch.tensor(tokens[-1]))))
    step_s = (time.perf_counter() - begun) / steps
    products = way.products(rows)
    products()
    begun = time.perf_counter()
    for _ in range(steps):
        products()
    products_s = (time.perf_counter() - begun) / steps
    return {"step_ms": 1000 * step_s, "products_ms": 1000 * products_s, "tokens": tokens}


def measure(
    before: Before, after: After, *, rows: int, adapters: bool, repetitions: int, steps: int
) -> dict[str, Any]:
    """One row of the table."""
    prompts = torch.randint(
        100, 40_000, (rows, PROMPT), generator=torch.Generator().manual_seed(rows)
    )
    found: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
    for _ in range(repetitions):
        for name, way in (("before", before), ("after", after)):
            found[name].append(run(way, prompts, adapters=adapters, steps=steps))
        if found["before"][-1]["tokens"] != found["after"][-1]["tokens"]:
            raise SystemExit(f"rows={rows} adapters={adapters}: other tokens than transformers")
    row: dict[str, Any] = {"rows": rows, "adapters": adapters}
    for name, runs in found.items():
        for part in ("step_ms", "products_ms"):
            row[f"{name}_{part}"] = round(statistics.median(r[part] for r in runs), 2)
        shares = [1 - r["products_ms"] / r["step_ms"] for r in runs]
        row[f"{name}_overhead_share"] = round(statistics.median(shares), 3)
    ratios = [
        b["step_ms"] / a["step_ms"] for b, a in zip(found["before"], found["after"], strict=True)
    ]
    row["speedup"] = round(statistics.median(ratios), 2)
    row["speedup_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return row


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULT)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    base = resolve_base("smollm2-135m")
    theirs, ours = load_base(base)[0], load_base(base)[0]
    adapters = [_random_adapter(ours, seed) for seed in range(ROWS[-1])]
    table, metrics = [], {}
    with torch.inference_mode():
        before, after = Before(theirs, adapters), After(ours, adapters)
        for with_adapters in (False, True):
            for rows in ROWS:
                row = measure(
                    before,
                    after,
                    rows=rows,
                    adapters=with_adapters,
                    repetitions=asked.repetitions,
                    steps=asked.steps,
                )
                table.append(row)
                print(row, flush=True)
                if with_adapters:
                    metrics[f"step_ms.b{rows}"] = row["after_step_ms"]
                    metrics[f"step_ms_before.b{rows}"] = row["before_step_ms"]
                    metrics[f"overhead_share.b{rows}"] = row["after_overhead_share"]
                    metrics[f"overhead_share_before.b{rows}"] = row["before_overhead_share"]
                    metrics[f"speedup.b{rows}"] = row["speedup"]
    write_result(
        asked.results,
        command=f"python benchmarks/serving_step.py --repetitions {asked.repetitions} "
        f"--steps {asked.steps} --threads {asked.threads}",
        metrics=metrics,
        table=table,
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
