"""A real federation in which one merchant answers garbage, of another kind in every round."""

import os

import pytest

from handbill.federation.messages import Recipe
from handbill.server.operate import drive
from handbill.server.settings import AdapterSettings, SecureAggregation
from handbill.simulations.market import write_sample_market

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

GOOD, ALSO_GOOD, HOSTILE = SHOPS = ("fern-kettle", "margin-ink", "ridge-lantern")
RUN, ROUNDS = "garbage", 6

# What the hostile merchant's ClientApp says in the place of its report: round by round the next.
SITE = """
import os, sys
if "handbill.clients.executor" in sys.orig_argv:
    import json
    import numpy as np
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body
    from handbill.clients import client_app
    from handbill.federation.grid import ARRAY, FORM, RECORD

    def array(data, **given):
        fields = {"dtype": "uint8", "shape": (len(data),), "stype": FORM} | given
        return RecordDict({RECORD: ArrayRecord({ARRAY: Array(data=data, **fields)})})

    def as_pieces(**said):
        class Said(Array):
            def deflate(self):
                fields = {"dtype": "uint8", "shape": [9], "stype": FORM, "arraychunk_ids": [0]}
                return add_header_to_object_body(json.dumps(fields | said).encode(), self)
        Said.__qualname__ = "Array"
        told = Said(dtype="uint8", shape=(1 << 20,), stype=FORM, data=bytes(1 << 20))
        content = RecordDict({RECORD: ArrayRecord()})
        content[RECORD].__dict__["_data"][ARRAY] = told  # where Flower would make it an Array again
        return content

    KINDS = (
        lambda: RecordDict({RECORD: MetricRecord({ARRAY: 1.0})}),
        lambda: array(b"PK\\x03\\x04", stype="numpy.ndarray"),
        lambda: array(b"noise" * 100),
        lambda: as_pieces(arraychunk_ids=[0] * 1000),
        lambda: as_pieces(dtype=7),
        lambda: RecordDict(),
    )

    def garbage(report):
        with open(os.environ["SAID"], "a+") as file:
            file.seek(0)
            said = len(file.readlines())
            file.write(str(len(report)) + "\\n")
        return KINDS[said % len(KINDS)]()

    client_app.to_record = garbage
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """A folder with the hostile merchant's program, and what it writes down of each answer."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "sitecustomize.py").write_text(SITE)
    return folder / "said"


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_base, running, said):
    home = tmp_path_factory.mktemp("garbage")
    write_sample_market(home / "market")
    paths = os.pathsep.join([str(said.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with running(
        home,
        home / "market",
        SHOPS,
        {shop: {"secure_aggregation": False} for shop in SHOPS},
        environments={HOSTILE: {"PYTHONPATH": paths, "SAID": str(said)}},
        base=str(tiny_base.path),
        adapter=AdapterSettings(layers=1),
        recipe=Recipe(rounds=ROUNDS, personal_steps=0, expected_users=40),
        min_reports=2,
        quarantine_after=0,
        secure_aggregation=SecureAggregation(enabled=False),
    ) as running_one:
        yield running_one


def test_every_round_is_committed_at_once_by_those_who_answer_well(federation, said):
    facts = []
    drive(federation.server, RUN, mode="train", on_event=facts.append)
    assert [f["event"] for f in facts if f["event"] in {"abandoned", "failed", "stumbled"}] == []
    assert [(number, survivors) for number, survivors, *_ in federation.rounds(RUN)] == [
        (number, [GOOD, ALSO_GOOD]) for number in range(1, ROUNDS + 1)
    ]
    errors = [f["error"] for f in facts if f["event"] == "reply" and f["merchant"] == HOSTILE]
    assert len(errors) == len(said.read_text().splitlines()) == ROUNDS
    assert all(errors)
    assert "there is no array of bytes of ours" in errors[0]
    assert "of another form" in errors[1]
    assert "unreadable (ProtocolError)" in errors[3]
    assert "unreadable" in errors[4]
