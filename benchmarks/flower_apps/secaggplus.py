"""Flower's SecAgg+ as its example has it: nodes that send back the arrays they were sent."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp

server = ServerApp()


@server.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run as many rounds as asked, and note when each of them ended."""
    asked: Any = context.run_config
    ended: list[float] = []

    def at_the_end_of_a_round(number: int, parameters: Any, config: Any) -> None:
        del number, parameters, config
        ended.append(time.time())
        Path(asked["times"]).write_text(json.dumps(ended))

    nodes = int(asked["nodes"])
    draws = np.random.default_rng(0)
    values = draws.standard_normal(int(asked["numbers"]), dtype=np.float32)
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=nodes,
        min_available_clients=nodes,
        initial_parameters=ndarrays_to_parameters([values]),
        evaluate_fn=at_the_end_of_a_round,
    )
    legacy = LegacyContext(
        context=context, config=ServerConfig(num_rounds=int(asked["rounds"])), strategy=strategy
    )
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=2 * nodes // 3 + 1)
    DefaultWorkflow(fit_workflow=workflow)(grid, legacy)


class _Echo(NumPyClient):
    """No training: what it was sent, as an update."""

    def fit(self, parameters: Any, config: Any) -> Any:
        del config
        return parameters, 1, {}


def _client(context: Context) -> Any:
    del context
    return _Echo().to_client()


client = ClientApp(client_fn=_client, mods=[secaggplus_mod])
