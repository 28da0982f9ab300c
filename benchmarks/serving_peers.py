"""Peers of the engine that need an environment of their own: vLLM's CPU build and llama.cpp.

Each runs in a child process, by that environment's Python, and writes when it is told to; the
child takes the time itself. ``make peers`` makes the environment.

    python benchmarks/serving_peers.py vllm|llama_cpp   what the child runs
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

ROWS: Final = 16
INSTALL: Final = "make peers"
PYTHON: Final = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
# What an answer is measured with: (adapters, an index or None for each request) -> token ids.
Write = Callable[[Sequence[int | None]], list[list[int]]]


class Peer:
    """A peer in a process of its own.

    Args:
        kind: ``vllm`` or ``llama_cpp``.
        facts: What it writes: ``base`` and ``adapters`` (folders), ``gguf`` (the base model's file),
            ``prompts``, ``tokens``, ``threads``, ``ends``.
    """

    def __init__(self, kind: str, **facts: Any) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(facts["threads"])}
        intel = PYTHON.parents[1] / "lib" / "libiomp5.so"
        if kind == "vllm" and intel.exists():  # as vLLM advises for its CPU build
            environment["LD_PRELOAD"] = str(intel)
        self._process = subprocess.Popen(
            [str(PYTHON), __file__, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.how = self._ask(facts)["how"]

    @staticmethod
    def missing(kind: str) -> bool:
        """Whether it is not installed."""
        if not PYTHON.exists():
            return True
        look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({kind!r}) is None)"
        return subprocess.run([str(PYTHON), "-c", look], check=False).returncode != 0

    def write(self, adapters: Sequence[int | None]) -> tuple[list[list[int]], float]:
        """Answers to the first prompts, one for each adapter, and the seconds they took."""
        answer = self._ask(list(adapters))
        return answer["ids"], answer["seconds"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, what: Any) -> Any:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the peer has no pipes")
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended: its own words are above")
        return json.loads(line)


def vllm_writer(facts: dict[str, Any]) -> tuple[Write, str]:
    """vLLM, float32 and eager: compiled it was no faster with adapters."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_HOST_IP="127.0.0.1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="ERROR",
        DO_NOT_TRACK="1",
        HF_HUB_OFFLINE="1",
    )
    import torch
    import vllm
    from vllm.lora.request import LoRARequest

    torch.set_num_threads(facts["threads"])
    model = vllm.LLM(
        model=facts["base"],
        dtype="float32",
        enforce_eager=True,
        enable_lora=True,
        max_loras=ROWS,
        max_lora_rank=8,
        max_model_len=1024,
        max_num_seqs=ROWS,
        enable_prefix_caching=False,
    )
    loras = [
        LoRARequest(str(number), number, folder)
        for number, folder in enumerate(facts["adapters"], start=1)
    ]
    tokens = facts["tokens"]
    how = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=tokens,
        min_tokens=tokens,
        stop_token_ids=facts["ends"],
        detokenize=False,
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in facts["prompts"]]

    def write(adapters: Sequence[int | None]) -> list[list[int]]:
        asked = [None if number is None else loras[number] for number in adapters]
        out = model.generate(prompts[: len(asked)], how, lora_request=asked, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in out]

    return write, f"vLLM {vllm.__version__}, float32, eager"


class LlamaCpp:
    """Batches of llama.cpp, with its own calls: its Python class writes one text at a time."""

    def __init__(self, facts: dict[str, Any]) -> None:
        import ctypes

        import llama_cpp

        self.lib, self.facts = llama_cpp, facts
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.length = len(facts["prompts"][0])
        self.model = llama_cpp.llama_model_load_from_file(
            facts["gguf"].encode(), llama_cpp.llama_model_default_params()
        )
        self.size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(ROWS * self.length, 0, 1)

    def context(self, ubatch: int, *, flash: bool) -> Any:
        """Room for all rows, and how they are run."""
        how = self.lib.llama_context_default_params()
        how.n_ctx = ROWS * (self.length + self.facts["tokens"])
        how.n_batch, how.n_ubatch = ROWS * self.length, ubatch
        how.n_seq_max = ROWS
        how.n_threads = how.n_threads_batch = self.facts["threads"]
        how.flash_attn_type = int(flash)
        return self.lib.llama_init_from_model(self.model, how)

    def run(self, context: Any, rows: list[tuple[list[int], int]]) -> list[int]:
        """Run some tokens of every row from a position; the likeliest next one of each."""
        import numpy as np

        batch, at, last = self.batch, 0, []
        for row, (ids, position) in enumerate(rows):
            for offset, token in enumerate(ids):
                batch.token[at], batch.pos[at] = token, position + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                batch.logits[at] = offset == len(ids) - 1
                at += 1
            last.append(at - 1)
        batch.n_tokens = at
        if self.lib.llama_decode(context, batch):
            raise SystemExit("llama.cpp could not decode the batch")
        chosen = []
        for index in last:
            found = self.lib.llama_get_logits_ith(context, index)
            logits = np.ctypeslib.as_array(found, (self.size,))
            logits[self.facts["ends"]] = -np.inf
            chosen.append(int(logits.argmax()))
        return chosen

    def generate(self, context: Any, count: int) -> list[list[int]]:
        """Answers to the first prompts."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(context), True)
        first = self.run(context, [(prompt, 0) for prompt in self.facts["prompts"][:count]])
        answers = [[token] for token in first]
        for step in range(self.facts["tokens"] - 1):
            rows = [([ids[-1]], self.length + step) for ids in answers]
            for ids, token in zip(answers, self.run(context, rows), strict=True):
                ids.append(token)
        return answers


def llama_writer(facts: dict[str, Any]) -> tuple[Write, str]:
    """llama.cpp on the file the base model comes from, at its fastest setting of those tried."""
    llama = LlamaCpp(facts)
    # For each number of rows on its own: what is fastest for one need not be for many.
    best: dict[int, tuple[float, Any, str]] = {}
    for ubatch in (128, 1024):
        for flash in (False, True):
            context = llama.context(ubatch, flash=flash)
            llama.generate(context, 1)  # warm
            for count in (1, ROWS):
                begun = time.perf_counter()
                llama.generate(context, count)
                took = time.perf_counter() - begun
                if count not in best or took < best[count][0]:
                    name = f"{count} rows: ubatch {ubatch}, flash attention {flash}"
                    best[count] = took, context, name

    def write(adapters: Sequence[int | None]) -> list[list[int]]:
        return llama.generate(best[len(adapters)][1], len(adapters))

    chosen = "; ".join(name for _, _, name in best.values())
    return write, f"llama-cpp-python {llama.lib.__version__}, Q4_1, {chosen}"


def main() -> None:
    """What the child does: facts, then a line of adapters for every time it writes."""
    says = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the peer prints is no answer
    writers = {"vllm": vllm_writer, "llama_cpp": llama_writer}
    write, how = writers[sys.argv[1]](json.loads(sys.stdin.readline()))
    print(json.dumps({"how": how}), file=says, flush=True)
    for line in sys.stdin:
        adapters = json.loads(line)
        begun = time.perf_counter()
        ids = write(adapters)
        seconds = time.perf_counter() - begun
        print(json.dumps({"ids": ids, "seconds": seconds}), file=says, flush=True)


if __name__ == "__main__":
    main()
