"""``flwr-clientapp`` at a merchant: runs our installed ClientApp, never what a server ships.

Flower's SuperNode fetches an app bundle from the server, and the stock ``flwr-clientapp`` unpacks
it and imports the app it names: whoever controls the server would run code at every merchant.
The merchant's SuperExec finds this program first under that name. It speaks the same protocol,
but unpacks nothing and always loads :data:`handbill.clients.client_app.app`.
"""

import sys
from typing import Any

from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from handbill.clients.client_app import app


def main() -> None:
    """Run one message through our ClientApp."""

    def unpack_nothing(*_: Any, **__: Any) -> None:
        return None

    def load_ours(*_: Any, **__: Any) -> Any:
        return lambda *_: app

    for name, replacement in (
        ("install_from_fab", unpack_nothing),
        ("get_load_client_app_fn", load_ours),
    ):
        if not hasattr(run_clientapp, name):
            sys.exit(f"error: this flwr has no {name}; install the version handbill pins")
        setattr(run_clientapp, name, replacement)
    flwr_clientapp()


if __name__ == "__main__":
    main()
