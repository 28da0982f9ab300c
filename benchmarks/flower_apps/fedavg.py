"""Flower's FedAvg as its guides have it: nodes that send back the arrays they were sent."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


@server.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run as many rounds as asked, and note when each of them ended."""
    asked: Any = context.run_config
    ended: list[float] = []

    def at_the_end_of_a_round(number: int, arrays: ArrayRecord) -> None:
        del number, arrays
        ended.append(time.time())
        Path(asked["times"]).write_text(json.dumps(ended))

    nodes = int(asked["nodes"])
    strategy = FedAvg(
        fraction_evaluate=float(asked["evaluate"]),
        min_train_nodes=nodes,
        min_evaluate_nodes=nodes if asked["evaluate"] else 0,
        min_available_nodes=nodes,
    )
    draws = np.random.default_rng(0)
    values = draws.standard_normal(int(asked["numbers"]), dtype=np.float32)
    strategy.start(
        grid,
        ArrayRecord({"update": Array(values)}),
        num_rounds=int(asked["rounds"]),
        evaluate_fn=at_the_end_of_a_round,
    )


@client.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """No training: what it was sent, as an update."""
    del context
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


@client.evaluate()  # type: ignore[untyped-decorator]
def evaluate(message: Message, context: Context) -> Message:
    """No evaluation either."""
    del context
    metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
