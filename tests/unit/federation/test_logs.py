"""A log line says what happened, with its fields, on one line."""

import logging

from handbill.federation.logs import FieldsFormatter


def line(**record):
    formatter = FieldsFormatter("%(levelname)s %(message)s")
    return formatter.format(logging.makeLogRecord({"levelname": "INFO", **record}))


def test_fields_follow_the_event_in_order():
    assert line(msg="refused", reason="no\nbudget", merchant="a") == (
        "INFO refused merchant='a' reason='no\\nbudget'"
    )


def test_a_traceback_comes_below_the_fields():
    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        shown = line(msg="failed", round=3, exc_info=(type(error), error, error.__traceback__))
    first, *rest = shown.splitlines()
    assert first == "INFO failed round='3'"
    assert rest[-1] == "ZeroDivisionError: division by zero"


def test_what_a_library_adds_to_every_record_is_no_field():
    assert line(msg="failed", _ray_timestamp_ns="1795703399589508568", round=3) == (
        "INFO failed round='3'"
    )
