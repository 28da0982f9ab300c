"""``/v1/events``: what is taken in, once; given back to its own tenant; locked; deleted."""

import json
import logging
import sqlite3
from datetime import timedelta

import pytest

from handbill.serving.feedback.store import Feedback
from handbill.serving.orm import utc_now

SHOPPER, OTHER = "sh-4711", "sh-4712"
COPY = {"title": "Oak desk lamp", "shopper": "reads at night"}
TEXT = "A warm lamp for late reading."


@pytest.fixture
def shop(scripted):
    return scripted(TEXT)


def served(service, *, tenant="acme", **fields):
    answer = service.post("/v1/copy", COPY | fields, tenant=tenant)
    assert answer.status_code == 200, answer.text
    return answer.json()["copies"][0]["copy_id"]


def event(copy_id, number=0, kind="impression", shopper=SHOPPER, **fields):
    return {"id": f"e{number}", "copy_id": copy_id, "kind": kind, "shopper": shopper, **fields}


def send(service, *events, tenant="acme"):
    return service.post("/v1/events", {"events": list(events)}, tenant=tenant)


def exported(service, tenant="acme", **query):
    return service.send("GET", "/v1/events", tenant=tenant, params=query).json()


def test_what_is_sent_twice_is_taken_once(shop):
    copy = served(shop)
    batch = [event(copy), event(copy, 1, "click"), event(copy, 2, "conversion", value=12.5)]
    first, second = send(shop, *batch), send(shop, *batch, event(copy, 3, "click"))
    assert (first.json()["accepted"], first.json()["repeated"]) == (3, 0)
    assert (second.json()["accepted"], second.json()["repeated"]) == (1, 3)
    kinds = [row["kind"] for row in exported(shop)["data"]]
    assert kinds == ["impression", "click", "conversion", "click"]
    assert exported(shop)["data"][2]["value"] == 12.5


def test_the_same_id_for_another_event_is_refused_within_a_batch_and_between(shop):
    copy = served(shop)
    answer = send(shop, event(copy), event(copy), event(copy, kind="click")).json()
    assert (answer["accepted"], answer["repeated"]) == (1, 1)
    (refused,) = answer["refused"]
    assert (refused["index"], refused["code"]) == (2, "conflict")
    again = send(shop, event(copy, kind="click"))
    assert again.status_code == 400
    assert "was used for another event" in again.json()["error"]["message"]


def test_copy_of_another_tenant_and_copy_that_never_was_give_the_same_answer(shop):
    theirs = served(shop, tenant="bolt")
    answers = [send(shop, event(copy)) for copy in (theirs, "hb-0-0", theirs + "x")]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    mixed = [
        send(shop, event(served(shop), n), event(copy, 100 + n)).json()["refused"][0]
        for n, copy in enumerate((theirs, "hb-0-0"))
    ]
    assert {row["code"] for row in mixed} == {"unknown_copy"}
    assert len({row["message"] for row in mixed}) == 1
    assert exported(shop, "bolt")["data"] == []


def test_one_tenants_event_ids_do_not_stand_in_anothers_way(shop):
    assert send(shop, event(served(shop))).json()["accepted"] == 1
    theirs = served(shop, tenant="bolt")
    assert send(shop, event(theirs), tenant="bolt").json()["accepted"] == 1
    assert len(exported(shop)["data"]) == len(exported(shop, "bolt")["data"]) == 1


def test_copy_for_one_shopper_takes_no_event_of_another(shop):
    copy = served(shop, shopper_key=SHOPPER)
    answer = send(shop, event(copy), event(copy, 1, shopper=OTHER)).json()
    assert answer["accepted"] == 1
    assert answer["refused"][0]["code"] == "other_shopper"


def test_text_and_request_are_kept_only_where_feedback_is_asked_for(shop):
    plain, rich = served(shop), served(shop, feedback=True)
    send(shop, event(plain), event(rich, 1))
    without, with_ = (row["copy"] for row in exported(shop)["data"])
    assert without == {"version": shop.digests["acme"]}
    assert with_["text"] == TEXT
    assert with_["request"]["title"] == COPY["title"]
    assert with_["request"]["shopper"] == COPY["shopper"]


def test_the_database_holds_no_shopper_no_text_and_no_kind(shop, caplog):
    caplog.set_level(logging.DEBUG)
    copy = served(shop, feedback=True, shopper_key=SHOPPER)
    send(shop, event(copy, kind="conversion"))
    exported(shop)
    shop.send("DELETE", "/v1/events", json={"shopper": OTHER})
    shop.gateway.feedback._repository.close()
    data = b"".join(p.read_bytes() for p in shop.config.state.glob("serving.db*"))
    for secret in (SHOPPER, TEXT, "reads at night", "conversion", '"e0"'):
        assert secret.encode() not in data, secret
        assert secret == "conversion" or secret not in caplog.text
    assert copy.encode() in data  # so the file is the right one


def test_the_hash_of_a_shopper_differs_between_tenants(shop):
    for tenant in ("acme", "bolt"):
        send(shop, event(served(shop, tenant=tenant)), tenant=tenant)
    with sqlite3.connect(shop.config.state / "serving.db") as database:
        hashes = {row[0] for row in database.execute("select shopper from feedback_event")}
    assert len(hashes) == 2


def test_pages_follow_each_other_to_the_end(shop):
    copy = served(shop)
    send(shop, *(event(copy, n) for n in range(7)))
    seen, after = [], 0
    while True:
        page = exported(shop, after=after, limit=3)
        seen += [row["seq"] for row in page["data"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert len(seen) == len(set(seen)) == 7
    assert shop.send("GET", "/v1/events", params={"limit": 0}).status_code == 400


def test_one_shopper_is_deleted_and_others_stay(shop):
    mine, everybodys = served(shop, shopper_key=SHOPPER), served(shop)
    send(shop, event(mine), event(everybodys, 1), event(everybodys, 2, shopper=OTHER))
    answer = shop.send("DELETE", "/v1/events", json={"shopper": SHOPPER}).json()
    assert answer == {"object": "deletion", "events": 2, "copies": 1, "assignments": 0}
    assert [row["shopper"] for row in exported(shop)["data"]] == [OTHER]
    assert send(shop, event(mine, 9)).status_code == 404
    again = shop.send("DELETE", "/v1/events", json={"shopper": SHOPPER}, tenant="bolt").json()
    assert again["events"] == 0
    for unclear in ({}, {"shopper": SHOPPER, "everything": True}):
        assert shop.send("DELETE", "/v1/events", json=unclear).status_code == 400


def test_when_everything_is_deleted_the_key_is_destroyed_too(shop):
    copy = served(shop, feedback=True)
    send(shop, event(copy))
    with sqlite3.connect(shop.config.state / "serving.db") as database:
        (sealed,) = database.execute("select sealed from served_copy").fetchone()
    before = shop.gateway.feedback._sealing.keys("acme")
    assert before.unseal(sealed, bound_to=copy)["text"] == TEXT
    assert shop.send("DELETE", "/v1/events", json={"everything": True}).json()["events"] == 1
    after = shop.gateway.feedback._sealing.keys("acme")
    assert after.seal_key != before.seal_key
    assert exported(shop)["data"] == []
    assert send(shop, event(served(shop))).json()["accepted"] == 1  # and it goes on


def test_a_row_whose_key_is_gone_stands_in_nobodys_way(shop):
    copy = served(shop)
    send(shop, event(copy))
    with sqlite3.connect(shop.config.state / "serving.db") as database:
        (late,) = database.execute("select sealed from feedback_event").fetchone()
        database.execute(
            "update feedback_event set sealed = ?", (late[:-1] + bytes([late[-1] ^ 1]),)
        )
    send(shop, event(copy, 1))
    assert [row["kind"] for row in exported(shop)["data"]] == ["impression"]
    assert exported(shop, limit=1)["data"] == []
    assert exported(shop, limit=1)["next"] is not None


def test_what_is_older_than_the_retention_time_is_gone(make_service, scripted):
    service = scripted(TEXT, feedback_days=2)
    copy = served(service)
    send(service, event(copy))
    with sqlite3.connect(service.config.state / "serving.db") as database:
        past = (utc_now() - timedelta(days=3)).isoformat(sep=" ")
        database.execute("update feedback_event set received_at = ?", (past,))
        database.execute("update served_copy set served_at = ?", (past,))
    assert exported(service)["data"] == []  # before anything was tidied
    assert send(service, event(copy, 1)).status_code == 404
    service.gateway.feedback.tidy()
    with sqlite3.connect(service.config.state / "serving.db") as database:
        for table in ("feedback_event", "served_copy"):
            assert database.execute(f"select count(*) from {table}").fetchone() == (0,)  # noqa: S608


def test_a_service_that_keeps_no_feedback_gives_no_ids_and_says_why(scripted):
    service = scripted(TEXT, feedback_days=0)
    (piece,) = service.post("/v1/copy", COPY).json()["copies"]
    assert "copy_id" not in piece
    answer = send(service, event("hb-0-0"))
    assert answer.status_code == 400
    assert "keeps no feedback" in answer.json()["error"]["message"]
    assert service.post("/v1/copy", COPY | {"feedback": True}).status_code == 400


WRONG = [
    {"kind": "like"},
    {"shopper": "jane@example.org"},
    {"shopper": "Jane Doe"},
    {"id": ""},
    {"value": -1},
    {"value": 1e300},
    {"time": "yesterday"},
    {"extra": 1},
]


def test_a_field_that_cannot_be_is_named_and_not_repeated(shop):
    for wrong in WRONG:
        answer = send(shop, event("hb-0-0") | wrong)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == f"events.0.{next(iter(wrong))}"
        assert "jane" not in answer.text.lower()


def test_times_lie_between_serving_and_now(shop):
    copy, now = served(shop), utc_now()
    good = [now.isoformat(), (now + timedelta(hours=2)).isoformat() + "+02:00"]
    bad = [(now + timedelta(hours=1)).isoformat(), (now - timedelta(days=1)).isoformat() + "Z"]
    answer = send(shop, *(event(copy, n, time=time) for n, time in enumerate(good + bad))).json()
    assert answer["accepted"] == 2
    assert [row["index"] for row in answer["refused"]] == [2, 3]
    given = [row["time"] for row in exported(shop)["data"]]
    assert given == [now.isoformat()] * 2


def test_streamed_copy_has_an_id_that_events_can_name(shop):
    answer = shop.post("/v1/copy", COPY | {"stream": True})
    chunks = [
        json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")
    ]
    (copy,) = [chunk["copy_id"] for chunk in chunks if "copy_id" in chunk]
    assert send(shop, event(copy)).json()["accepted"] == 1


def test_what_was_blocked_has_no_id(scripted):
    service = scripted(TEXT, "The best lamp in the world.", copy_attempts=1)
    answer = service.post("/v1/copy", COPY | {"n": 2}).json()
    (piece,) = answer["copies"]
    number = int(piece["copy_id"].rsplit("-", 1)[1])
    other = f"{answer['id']}-{1 - number}"
    assert send(service, event(piece["copy_id"])).json()["accepted"] == 1
    assert send(service, event(other, 1)).status_code == 404


def test_copy_of_no_words_has_no_id(scripted):
    service = scripted(" ")
    (piece,) = service.post("/v1/copy", COPY).json()["copies"]
    assert piece["text"] == ""
    assert "copy_id" not in piece


def test_without_the_key_file_nothing_is_taken_and_nobody_is_told_where_it_lay(shop):
    copy = served(shop)
    (shop.config.state / "keys" / "vault.kek").unlink()
    answer = send(shop, event(copy))
    assert answer.status_code == 503
    assert "vault" not in answer.text


def test_a_service_tidies_by_itself(shop, monkeypatch):
    tidied = []

    def tidy(self):
        tidied.append(self)

    monkeypatch.setattr(Feedback, "tidy", tidy)
    shop.gateway.feedback.start()
    shop.gateway.feedback.close()
    assert tidied == [shop.gateway.feedback]
