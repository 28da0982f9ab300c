"""vLLM behind our interface, for machines with a GPU; its CPU build passes the same tests.

vLLM runs inside this process, in the engine's thread, and none of its servers is started: what it
serves, and with which adapter, is decided here. Waiting, turns between tenants, adapters in memory
and text are ours (:mod:`handbill.serving.threaded`); scheduling of a step, keys and values, sampling
and grammars are vLLM's.

An adapter comes to vLLM from our verified files only. Its weights are handed over in memory, since
a tenant's are locked on the disk, and under a number that no other adapter ever has. Keys and
values of prompts are found again by the same tenant with the same adapter only.

It never searches nor scores: num_beams above 1 and explain are refused.
"""

import asyncio
import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from handbill.errors import InputError
from handbill.generator.adapters import Adapter, linear_shapes
from handbill.generator.base_models import BaseModel
from handbill.serving.errors import BadRequestError, SchemaError, UnavailableError
from handbill.serving.guides import TOO_COMPLEX, Guides
from handbill.serving.schemas import styled
from handbill.serving.sequences import Sampling, Sequence
from handbill.serving.text import AnswerText
from handbill.serving.threaded import (
    SPARE,
    Reader,
    Request,
    ThreadedEngine,
    check_vocabulary,
    end_ids,
)
from handbill.serving.vllm_loras import LoraBank

log = logging.getLogger(__name__)

# Read by vLLM when it is imported. It speaks to nobody and runs in this process, on the threads
# that torch was given; its own ports are on loopback; no package may add code to it.
_ENVIRONMENT: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
# Ranks vLLM makes room for; every slot has room for the largest rank taken.
_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Settings that vLLM lacks, or lets contradict a grammar: followed in vllm_rules.
_OURS: Final = ("no_repeat_ngram_size", "min_tokens", "phrases", "insist")
_SHIFTS: Final = ("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias")
_PLAIN: Final = Sampling()
# Positions of one block of keys and values on a CPU; its default, 128, would share few prompts.
_CPU_BLOCK: Final = 32


@dataclass(eq=False, slots=True, kw_only=True)
class VllmRequest(Request):
    """One answer that vLLM writes.

    Attributes:
        id: Its name in vLLM.
        how: Its settings.
        text: What is written.
        json: The same, of an answer that must be JSON.
        seen: vLLM has said how much of its prompt it had run before.
        over: vLLM has ended it.
    """

    id: str
    how: Sampling
    text: AnswerText
    json: str = ""
    seen: bool = False
    over: bool = False


class VllmEngine(ThreadedEngine[VllmRequest]):
    """An :class:`~handbill.serving.sequences.Engine` on vLLM.

    Args:
        base: One of :data:`handbill.serving.config.MODELS`.
        load: Reads and verifies an adapter by digest; runs in a helper thread.
        device: ``cpu`` or ``cuda``, which the installed build of vLLM must be for.
        dtype: Of weights, keys and values.
        max_batch: Rows that run together; one more is kept for a tenant that has none.
        slots: Adapters in memory, each with room for the largest rank.
        max_rank: Largest rank taken.
        context_tokens: Longest prompt and answer together.
        prefill_tokens: Tokens of prompts run in one step, beside the running rows.
        prefix_cache_bytes: Memory for beginnings of prompts that may come again, beside what the
            running rows may need; on a GPU all that is free is used. 0 is off.
        queue_limit: Rows that may wait, over all tenants; any tenant may have ``max_batch`` of its own.

    Raises:
        InputError: vLLM is not installed, is built for another device, or the tokenizer is not
            the model's own.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        load: Callable[[str], Adapter],
        device: str = "cpu",
        dtype: str = "float32",
        max_batch: int = 16,
        slots: int = 16,
        max_rank: int = 64,
        context_tokens: int = 1024,
        prefill_tokens: int = 256,
        prefix_cache_bytes: int = 0,
        queue_limit: int = 128,
    ) -> None:
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(base.path, local_files_only=True)
        self._tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
        check_vocabulary(self._tokenizer, config)
        self._ends = sorted(end_ids(self._tokenizer, _generation(base, config)))
        context = min(context_tokens, int(config.max_position_embeddings))
        self._loras = LoraBank(linear_shapes(base), slots=slots, max_rank=max_rank)
        super().__init__(
            load=load,
            bank=self._loras,
            context=context,
            max_batch=max_batch,
            queue_limit=queue_limit,
        )
        self._guides = Guides(self._tokenizer)
        self._active: dict[str, VllmRequest] = {}
        self._names = itertools.count()
        self._hits = self._misses = 0
        memory = {}
        if device == "cpu":
            each = -(-context // _CPU_BLOCK)
            blocks = (max_batch + SPARE) * each + 1  # vLLM keeps one for itself
            row_bytes = _position_bytes(config, dtype) * _CPU_BLOCK * blocks
            memory = {
                "block_size": _CPU_BLOCK,
                "kv_cache_memory_bytes": row_bytes + prefix_cache_bytes,
                "enforce_eager": True,  # compiled it is not faster on a CPU, and starts later
            }
        self._engine = self._loras.engine = _vllm(
            device,
            model=str(base.path),
            dtype=dtype,
            max_model_len=context,
            max_num_seqs=max_batch + SPARE,
            max_num_batched_tokens=max_batch + SPARE + prefill_tokens,
            # A long prompt takes half of a step's tokens, so that short ones behind it join.
            long_prefill_token_threshold=min(context, max(1, prefill_tokens // 2)),
            enable_prefix_caching=prefix_cache_bytes > 0,
            enable_lora=True,
            max_loras=slots,
            max_cpu_loras=slots,
            max_lora_rank=next((r for r in _RANKS if r >= max_rank), _RANKS[-1]),
            logits_processors=["handbill.serving.vllm_rules:AllRules"],
            disable_log_stats=True,
            **memory,
        )
        self._thread.start()

    async def _requests(self, sequence: Sequence, reader: Reader) -> list[VllmRequest]:
        how = sequence.sampling
        if how.num_beams > 1:
            raise BadRequestError(
                f"num_beams={how.num_beams}: this service's engine does not search; "
                "leave num_beams out",
                param="num_beams",
            )
        if sequence.scored:  # with adapters in memory, vLLM 0.32 on a CPU fails when asked for them
            raise BadRequestError(
                "explain: this service's engine does not score texts; leave it out", param="explain"
            )
        if how.json_schema:  # refused here, by our limits, and not in the middle of a step
            await asyncio.to_thread(self._guides.start, how.json_schema)
        return [
            VllmRequest(
                sequence=sequence,
                reader=reader,
                id=str(next(self._names)),
                how=how.for_answer(index),
                text=AnswerText(sequence, index, self._tokenizer, self._ends),
            )
            for index in range(sequence.answers)
        ]

    def close(self) -> None:
        """Stop; see :meth:`handbill.serving.threaded.ThreadedEngine.close`."""
        super().close()
        self._engine.engine_core.shutdown()

    def _prefix_counts(self) -> tuple[int, int]:
        return self._hits, self._misses

    # ---- the engine's thread ----

    def _begun(self) -> Iterable[VllmRequest]:
        return self._active.values()

    def _running(self) -> int:
        return len(self._active)

    def _begin(self, request: VllmRequest) -> None:
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs import tokens_input

        sequence = request.sequence
        held = self._loras.acquire(sequence.adapter)
        self._active[request.id] = request
        try:
            self._engine.add_request(
                request.id,
                tokens_input(list(sequence.prompt), cache_salt=sequence.tenant),
                _params(request.how, self._ends),
                lora_request=self._loras.lora(held),
            )
        except (ValueError, VLLMValidationError) as error:  # one request must not stop the others
            log.error("request_refused", extra={"reason": type(error).__name__})  # noqa: TRY400 - it may hold the prompt
            request.over = True
            request.deliver(BadRequestError("This request cannot be written; a setting is wrong."))

    def _step(self) -> None:
        for output in self._engine.step():
            request = self._active.get(output.request_id)
            if request is None or request.done:
                continue
            if not request.seen:
                request.seen = True
                self._hits += bool(output.num_cached_tokens)
                self._misses += not output.num_cached_tokens
            piece = output.outputs[0]
            request.over = piece.finish_reason is not None
            self._deliver(request, piece.token_ids)
            if request.over and not request.done:
                request.deliver(UnavailableError("The engine stopped this answer."))

    def _deliver(self, request: VllmRequest, tokens: Collection[int]) -> None:
        for token in tokens:
            self._tokens += 1
            delta = request.text.add(token)
            if request.how.json_schema:
                request.json += delta.text
                if token in self._ends and not _is_json(request.json):
                    # A grammar that became too complex lets vLLM end the answer anywhere.
                    request.deliver(SchemaError(TOO_COMPLEX))
                    return
            request.deliver(delta)
            if request.done:
                return

    def _drop_done(self) -> None:
        gone = [request for request in self._active.values() if request.done or request.left]
        self._engine.abort_request([request.id for request in gone if not request.over])
        for request in gone:
            del self._active[request.id]
            self._loras.release(request.sequence.adapter)


def _vllm(device: str, **settings: Any) -> Any:
    """VLLM's engine, in this process."""
    os.environ.update(_ENVIRONMENT)
    try:
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor
    except ImportError as error:
        raise InputError(
            f"engine=vllm: vLLM cannot be imported ({error}); docs/serving.md says how it is installed"
        ) from error
    if current_platform.device_type != device:
        raise InputError(
            f"device={device}: the installed vLLM is built for {current_platform.device_type}"
        )
    config = EngineArgs(
        structured_outputs_config=StructuredOutputsConfig(backend="guidance"), **settings
    ).create_engine_config()
    return LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)


def _params(how: Sampling, ends: list[int]) -> Any:
    """The settings of an answer, as vLLM has them."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    ours = {name: getattr(how, name) for name in _OURS if getattr(how, name)}
    if how.insist:  # spares what is to be said from the penalties, so they are followed together
        ours |= {name: getattr(how, name) for name in _SHIFTS}
        how = replace(how, **{name: getattr(_PLAIN, name) for name in _SHIFTS})
    return SamplingParams(
        max_tokens=how.max_tokens,
        temperature=how.temperature,
        top_k=how.top_k,
        top_p=how.top_p,
        seed=how.seed,
        repetition_penalty=how.repetition_penalty,
        frequency_penalty=how.frequency_penalty,
        presence_penalty=how.presence_penalty,
        logit_bias=dict(how.logit_bias) or None,
        stop_token_ids=ends,
        structured_outputs=StructuredOutputsParams(json=styled(how.json_schema))
        if how.json_schema
        else None,
        extra_args={"rules": ours, "ends": ends} if ours else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _generation(base: BaseModel, config: Any) -> Any:
    """The model's generation settings; of its configuration where it has none of their own."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(base.path, local_files_only=True)
    except OSError:
        return config


def _position_bytes(config: Any, dtype: str) -> int:
    """Memory of one position's keys and values, in all layers."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = 2 * config.num_hidden_layers * (config.num_key_value_heads or heads) * size
    return int(kept * torch.empty(0, dtype=getattr(torch, dtype)).element_size())


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
