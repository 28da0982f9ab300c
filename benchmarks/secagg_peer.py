"""Flower's SecAgg+ as it is, over a grid in this process: its client mod and its server workflow."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.supercore.task_identity import TaskIdentity

Vector = np.ndarray[Any, np.dtype[np.float32]]
LEVELS: Final = 2**22  # its default
BOUND: Final = 1.0
_RUN: Final = 1


@dataclass
class LocalGrid:
    """Hands each message to Flower's client mod in this process, and takes the time of it.

    Attributes:
        vectors: Update of each node.
        dropped: Nodes that share their keys and are gone then.
        only: Of the others, how many mask their vectors; the rest send what the last of these
            sent, which costs nothing and spoils the sum. 0 lets all of them.
    """

    vectors: Mapping[int, Vector]
    dropped: set[int]
    only: int = 0
    client_s: dict[int, float] = field(default_factory=dict)
    bytes_up: int = 0

    def __post_init__(self) -> None:
        self.contexts = {node: Context(_RUN, node, {}, RecordDict(), {}) for node in self.vectors}
        self.masked: set[int] = set()
        self.sent = RecordDict()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Answer every message; what dropped nodes should send is an error."""
        del timeout
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        stage = str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
        if node in self.dropped and stage == Stage.COLLECT_MASKED_VECTORS:
            return Message(Error(0, "dropped"), reply_to=message)
        masks = stage == Stage.COLLECT_MASKED_VECTORS
        copies = bool(self.only) and masks and len(self.masked) >= self.only
        # Serialising it for the network would copy it: the client mod takes the stage out.
        own = RecordDict(dict(message.content))
        own[RECORD_KEY_CONFIGS] = ConfigRecord(
            dict(message.content.config_records[RECORD_KEY_CONFIGS])
        )
        message.content = own
        started = time.perf_counter()
        fit = self._fit_next_to_nothing if copies else self._fit
        reply = secaggplus_mod(message, self.contexts[node], fit)
        if copies:  # it has opened its shares, and sends what another has masked
            return Message(self.sent, reply_to=message)
        self.client_s[node] = self.client_s.get(node, 0.0) + time.perf_counter() - started
        if masks:
            masked = reply.content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]
            self.bytes_up = sum(len(part) for part in masked)  # type: ignore[union-attr, arg-type, misc]
            self.sent = reply.content
            self.masked.add(node)
        return reply

    def _fit_next_to_nothing(self, message: Message, context: Context) -> Message:
        return self._answered(message, self.vectors[context.node_id][:1])

    def _fit(self, message: Message, context: Context) -> Message:
        return self._answered(message, self.vectors[context.node_id])

    def _answered(self, message: Message, vector: Vector) -> Message:
        update = ndarrays_to_parameters([vector])
        result = FitRes(Status(Code.OK, ""), update, 1, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


class _Sampled(FedAvg):
    """Every node of the grid, in each round."""

    def __init__(self, nodes: Iterable[int]) -> None:
        super().__init__()
        self._nodes = list(nodes)

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        del server_round, client_manager
        from flwr.common import FitIns

        return [
            (SimpleNamespace(node_id=n, cid=str(n)), FitIns(parameters, {})) for n in self._nodes
        ]


@dataclass(frozen=True)
class PeerRun:
    """Seconds of each client, of the server, bytes a client sends, and the mean that came out."""

    client_s: list[float]
    server_s: float
    bytes_up: int
    mean: Vector


def run_peer(
    vectors: Mapping[int, Vector], dropped: set[int], *, threshold: int, only: int = 0
) -> PeerRun:
    """One round of SecAgg+ on the full graph, with the same threshold as ours."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = _RUN, _RUN, 0
    workflow = SecAggPlusWorkflow(
        num_shares=1.0,
        reconstruction_threshold=threshold,
        max_weight=1.0,
        clipping_range=BOUND,
        quantization_range=LEVELS,
        modulus_range=2**32,
    )
    strategy = _Sampled(vectors)
    context = LegacyContext(Context(_RUN, 0, {}, RecordDict(), {}), None, strategy, None)
    size = next(iter(vectors.values())).size
    nothing = ndarrays_to_parameters([np.zeros(size, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        nothing, True
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    grid, state = LocalGrid(vectors, dropped, only=only), WorkflowState()
    started = time.perf_counter()
    for stage in (
        workflow.setup_stage,
        workflow.share_keys_stage,
        workflow.collect_masked_vectors_stage,
        workflow.unmask_stage,
    ):
        if not stage(grid, context, state):  # type: ignore[arg-type]  # all it needs of a Grid
            raise RuntimeError(f"SecAgg+ stopped in {stage.__name__}")
    seconds = time.perf_counter() - started
    result = compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], True)
    return PeerRun(
        client_s=[grid.client_s[node] for node in grid.masked],
        server_s=seconds - sum(grid.client_s.values()),
        bytes_up=grid.bytes_up,
        mean=parameters_to_ndarrays(result)[0],
    )
