"""``handbill copy`` and ``handbill reviews`` against a service that listens."""

import json
import threading
import time

import pytest
import uvicorn
from typer.testing import CliRunner

from handbill.cli import app
from handbill.errors import HandbillError

run = CliRunner()
GOOD, BAD = "A warm lamp for late reading.", "The best lamp in the world."


@pytest.fixture
def typed(scripted):
    """Type a command of a tenant's at a service that writes one good piece and then bad ones."""
    service = scripted(GOOD, BAD, copy_attempts=1)
    server = uvicorn.Server(
        uvicorn.Config(service.app, port=0, log_level="error", lifespan="off", ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def type_(*words, tenant="acme"):
        who = ("--url", f"http://127.0.0.1:{port}", "--key", service.keys[tenant])
        return run.invoke(app, [*map(str, words), *who], catch_exceptions=False)

    yield type_
    server.should_exit = True
    thread.join()


def test_a_request_of_which_all_is_blocked_says_where_it_is_kept(typed):
    typed("copy", "Oak desk lamp")  # takes the good text
    with pytest.raises(HandbillError, match=r"Kept for review as 1: handbill reviews list"):
        typed("copy", "Oak desk lamp", "--review")


def test_what_is_blocked_is_told_kept_and_decided(typed):
    made = typed("copy", "Oak desk lamp", "-n", "2", "--review")
    assert made.stdout == f"{GOOD}\n"
    assert made.stderr == "one piece was blocked: en.superlative.best, en.superlative.emphatic\n"
    listed = typed("reviews", "list").stdout.splitlines()
    assert listed[0] == f"1  Oak desk lamp: {BAD}"
    assert listed[1] == "    block en.superlative.best 'The best'"
    assert typed("reviews", "list", tenant="bolt").stdout == "none\n"
    assert typed("reviews", "edit", 1, "A warm lamp").stdout == "edited 1\n"
    (row,) = json.loads(typed("reviews", "list", "--state", "edited", "--json").stdout)["reviews"]
    assert row["text"] == "A warm lamp"
    with pytest.raises(HandbillError, match="409: review 1: is edited already"):
        typed("reviews", "approve", 1)
    with pytest.raises(HandbillError, match="404: review 9"):
        typed("reviews", "reject", 9)


def test_when_nothing_passes_the_error_names_the_rule_and_the_words(typed):
    typed("copy", "Oak desk lamp")  # the good one
    with pytest.raises(HandbillError, match=r"422: .*en\.superlative\.best \('The best'\)"):
        typed("copy", "Oak desk lamp")


def test_the_label_is_an_option(typed):
    made = typed("copy", "Oak desk lamp", "--label", "end")
    assert made.stdout == f"{GOOD} [AI-generated]\n"
