"""A round's messages and nothing else: as many phases as a round of ours has, of the same sizes.

The server's half; the merchants' is ``echo_trainer.py`` behind handbill's own SuperNode and executor.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from handbill.federation.grid import GridTransport

server = ServerApp()
client = ClientApp()  # merchants run handbill's instead, whatever this says


@server.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run as many rounds as asked, and note when each of them ended."""
    asked: Any = context.run_config
    nodes: dict[str, int] = json.loads(Path(asked["nodes_file"]).read_text())
    sizes = [tuple(size) for size in json.loads(asked["sizes"])]
    transport = GridTransport(grid, lambda: nodes)
    while set(transport.merchants()) < set(nodes):
        time.sleep(0.5)
    ended = [time.time()]
    for _ in range(int(asked["rounds"])):
        for down, up in sizes:
            for merchant in nodes:
                # Bytes of its own for each: Flower keeps equal ones once.
                transport.send(merchant, up.to_bytes(8, "big") + os.urandom(down))
            for _ in nodes:
                reply = transport.receive(600.0)
                if reply is None or len(reply.message) != up:
                    raise RuntimeError(f"a phase failed: {reply.error if reply else 'silence'}")
        ended.append(time.time())
        Path(asked["times"]).write_text(json.dumps(ended))
