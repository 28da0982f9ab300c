"""The receipts of merchants' ledgers: with the round or not at all, whatever dies when."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from cryptography.hazmat.primitives import serialization

import handbill.server
from handbill.errors import RoundError
from handbill.federation.messages import Receipt
from handbill.privacy.faults import EXIT_CODE, VARIABLE
from handbill.server.orm import connect
from handbill.server.recovery import recover
from handbill.server.registry import Registry

pytestmark = pytest.mark.integration

POINTS = {"registry.commit.before": False, "registry.commit.after": True}  # is it committed?

COMMIT = """
    import json, sys
    from pathlib import Path
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from handbill.server.registry import Registry

    home, url, folder = sys.argv[1:]
    registry = Registry(Path(home), load_pem_private_key(sys.stdin.buffer.read(), None), url=url)
    attempt = registry.open_round("run-1", 1, "global", ["shop-a"])
    registry.commit_round(
        attempt, folder=Path(folder), parent="", survivors=["shop-a"],
        ledger_heads={"shop-a": "ab" * 32}, metrics={}, bytes_down=1, bytes_up=1, seconds=1.0,
    )
"""


def receipt(number, head, stage="global"):
    return Receipt(run="run-1", round=number, stage=stage, head=head * 32)


def take(operator, number, heads, *, parent="", stage="global"):
    registry = operator.registry
    attempt = registry.open_round(operator.run, number, stage, ["shop-a", "shop-b"])
    folder = operator.sealed(number, parent) if stage == "global" else None
    heads = {shop: head * 32 for shop, head in heads.items()}
    done = operator.commit(attempt, folder, parent, survivors=list(heads), ledger_heads=heads)
    return done.aggregate


def test_each_merchants_receipt_is_of_the_last_round_it_took_part_in(operator):
    registry = operator.registry
    assert registry.receipts() == {}
    first = take(operator, 1, {"shop-a": "a1", "shop-b": "b1"})
    second = take(operator, 2, {"shop-b": "b2"}, parent=first)
    take(operator, 1, {"shop-a": "a3"}, parent=second, stage="personal")
    assert registry.receipts() == {
        "shop-a": receipt(1, "a3", "personal"),
        "shop-b": receipt(2, "b2"),
    }


def test_a_round_that_was_not_committed_gives_no_receipt(operator):
    registry = operator.registry
    attempt = registry.open_round(operator.run, 1, "global", ["shop-a"])
    registry.abandon_round(attempt, "too few merchants answered")
    with pytest.raises(RoundError):
        operator.commit(attempt, operator.sealed(1))
    assert registry.receipts() == {}


@pytest.mark.parametrize(("point", "committed"), POINTS.items())
def test_round_and_receipts_are_committed_together(operator, key, database_url, point, committed):
    registry = operator.registry
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    arguments = [registry.root.parent, database_url, operator.sealed(1)]
    died = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMMIT), *arguments],
        input=pem,
        check=False,
        env=os.environ | {VARIABLE: f"{point}=exit"},
    )
    assert died.returncode == EXIT_CODE
    again = Registry(registry.root.parent, key, url=database_url)
    recover(again)
    assert (again.last_committed(operator.run) is not None) == committed
    assert again.receipts() == ({"shop-a": receipt(1, "ab")} if committed else {})
    again.database.close()


def migrate_to(url, revision):
    engine = connect(url)
    with engine.begin() as connection:
        config = Config()
        folder = Path(handbill.server.__file__).parent / "migrations"
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        (command.downgrade if revision == "v0001" else command.upgrade)(config, revision)
    engine.dispose()


def test_a_database_from_before_receipts_gets_them_from_its_rounds(operator, key, database_url):
    first = take(operator, 1, {"shop-a": "a1", "shop-b": "b1"})
    take(operator, 2, {"shop-b": "b2"}, parent=first)
    before = operator.registry.receipts()
    operator.registry.database.close()
    migrate_to(database_url, "v0001")
    migrate_to(database_url, "v0001")
    again = Registry(operator.registry.root.parent, key, url=database_url)
    assert again.receipts() == before
    assert before == {"shop-a": receipt(1, "a1"), "shop-b": receipt(2, "b2")}
    again.database.close()
