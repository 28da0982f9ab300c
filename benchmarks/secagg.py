"""What a secure sum costs, beside Flower's SecAgg+ for the same vectors, thresholds and drop-outs.

``python benchmarks/secagg.py`` takes about a quarter of an hour. All parties run one after another in
this process: seconds of a client are those of one client, without any network. A tenth of the clients
drop out after they shared their keys. Finished sizes are kept in the result file.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secagg_peer import run_peer

from handbill.federation.secagg.aggregator import Aggregator
from handbill.federation.secagg.masks import Words
from handbill.federation.secagg.participant import Participant
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import SessionKeys, threshold
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "secagg.json"
DROPPED: Final = 0.1
# Above so much work, so many of SecAgg+'s clients are timed and the others copy.
ALL_CLIENTS: Final = 50_000_000
TIMED: Final = 4
RING: Final = Ring()
NOTES: Final = (
    "Seconds of one client and of the server in a whole session, computation only, all in one process "
    "one after another. Median over clients; the table has their range. A tenth of the clients drop "
    "out after sharing. SecAgg+ is Flower's own client mod and server workflow on the full graph with "
    "the same threshold; where `peer_clients` is below the number of survivors the others sent copies, "
    "so that its sum was not checked. exact: ours equals the sum of the encoded integers, coordinate "
    "by coordinate. bytes_per_coordinate: everything one client sends. Our masks are made on every "
    "processor of the machine, SecAgg+'s on one."
)
Vector = np.ndarray[Any, np.dtype[np.float32]]


class Clock:
    """Adds up the seconds of calls by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call and take its time."""
        started = time.perf_counter()
        result = call(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        return result


def run_ours(vectors: Mapping[str, Vector], dropped: set[str]) -> dict[str, Any]:
    """One session of SA-1; seconds of each client and of the server, and whether it is exact."""
    names, size = list(vectors), next(iter(vectors.values())).size
    identities = {name: Ed25519PrivateKey.generate() for name in names}
    roster = {name: key.public_key() for name, key in identities.items()}
    terms: dict[str, Any] = {"context": bytes(32), "ring": RING, "dimension": size}
    clock, server = Clock(), Aggregator(roster, **terms)
    parties: dict[str, Participant] = {}
    sent = dict.fromkeys(names, 0)
    exact = np.zeros(size, np.uint64)

    def enter(name: str) -> bytes:
        keys = SessionKeys()
        parties[name] = Participant(
            name, keys, identities[name], roster, burn=lambda: None, **terms
        )
        return keys.advertise(name, identities[name])

    def mask(encoded: Words, name: str) -> bytes:
        return parties[name].mask(boxes[name], encoded)

    def phase(some: list[str], client: Callable[[str], bytes], take: Callable[..., None]) -> None:
        for name in some:
            answer = clock(name, client, name)
            sent[name] += len(answer)
            clock("server", take, name, answer)

    phase(names, enter, server.advertised)
    request = clock("server", server.share_request)
    phase(names, lambda name: parties[name].share(request), server.shared)
    left = [name for name in names if name not in dropped]
    boxes = {name: clock("server", server.mask_request, name) for name in left}
    for name in left:
        encoded = clock(name, RING.encode, vectors[name])
        np.add(exact, encoded, out=exact)  # what the sum must be, outside of what is timed
        phase([name], partial(mask, encoded), server.masked)
    survivors = clock("server", server.agree_request)
    phase(left, lambda name: parties[name].agree(survivors), server.agreed)
    agreements = clock("server", server.unmask_request)
    phase(left, lambda name: parties[name].unmask(agreements), server.unmasked)
    opened = clock("server", server.finish)
    return {
        "client_s": [clock.seconds[name] for name in left],
        "server_s": clock.seconds["server"],
        "bytes_up": max(sent[name] for name in left),
        "exact": bool((opened.total == exact.astype(np.uint32)).all()),
    }


def compare(n: int, d: int) -> dict[str, Any]:
    """One size: ours, then the peer."""
    generator = np.random.default_rng(n)
    rows = {k: generator.uniform(-0.2, 0.2, d).astype(np.float32) for k in range(1, n + 1)}
    gone = set(range(1, 1 + round(DROPPED * n)))
    ours = run_ours({f"m{k:03}": row for k, row in rows.items()}, {f"m{k:03}" for k in gone})
    only = 0 if n * d <= ALL_CLIENTS else TIMED
    peer = run_peer(rows, gone, threshold=threshold(n), only=only)
    if not only:
        expected = np.mean([row for k, row in rows.items() if k not in gone], axis=0)
        if np.abs(peer.mean - expected).max() > 1e-5:
            raise RuntimeError("SecAgg+ did not give the mean")
    found = {
        "clients": n,
        "dimension": d,
        "client_s": round(statistics.median(ours["client_s"]), 4),
        "client_s_range": [round(f(ours["client_s"]), 4) for f in (min, max)],
        "server_s": round(ours["server_s"], 3),
        "bytes_per_coordinate": round(ours["bytes_up"] / d, 4),
        "exact": ours["exact"],
        "peer_client_s": round(statistics.median(peer.client_s), 3),
        "peer_client_s_range": [round(f(peer.client_s), 3) for f in (min, max)],
        "peer_server_s": round(peer.server_s, 2),
        "peer_bytes_per_coordinate": round(peer.bytes_up / d, 4),
        "peer_clients": len(peer.client_s),
    }
    found["client_speedup"] = round(found["peer_client_s"] / found["client_s"], 1)
    found["client_speedup_range"] = [
        round(found["peer_client_s_range"][0] / found["client_s_range"][1], 1),
        round(found["peer_client_s_range"][1] / found["client_s_range"][0], 1),
    ]
    found["server_speedup"] = round(found["peer_server_s"] / found["server_s"], 1)
    return found


def main() -> None:
    """Measure all sizes, or those asked for; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    old = json.loads(asked.results.read_text()) if asked.results.is_file() else {}
    table: list[dict[str, Any]] = old.get("table", [])
    for d in asked.dimensions:
        for n in asked.clients:
            if not any((row["clients"], row["dimension"]) == (n, d) for row in table):
                table.append(compare(n, d))
                print(table[-1], flush=True)
                save(asked.results, table)


def save(path: Path, table: list[dict[str, Any]]) -> None:
    """Write the result."""
    metrics: dict[str, float] = {}
    for row in table:
        place = f"n{row['clients']}.d{row['dimension']}"
        for ours, name in (
            ("client_s", "client_s"),
            ("server_s", "server_s"),
            ("peer_client_s", "flower_client_s"),
            ("peer_server_s", "flower_server_s"),
            ("client_speedup", "client_speedup"),
            ("server_speedup", "server_speedup"),
        ):
            metrics[f"{name}.{place}"] = row[ours]
    metrics["bytes_per_coordinate"] = max(row["bytes_per_coordinate"] for row in table)
    metrics["exact"] = float(all(row["exact"] for row in table))
    write_result(
        path,
        command="python benchmarks/secagg.py",
        metrics=metrics,
        table=table,
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
