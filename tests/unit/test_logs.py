"""A log line says what happened, with its fields, on one line, and never what was worked on."""

import logging
import subprocess
import sys

import pytest

from handbill.errors import LedgerError
from handbill.logs import FieldsFormatter, configure_logs

SECRET = "Anna Schmidt"


def line(**record):
    formatter = FieldsFormatter("%(levelname)s %(message)s")
    return formatter.format(logging.makeLogRecord({"levelname": "INFO", **record}))


def fail_at(depth):
    if depth:
        fail_at(depth - 1)
    int(SECRET)


def test_fields_follow_the_event_in_order():
    assert line(msg="refused", reason="no\nbudget", merchant="a") == (
        "INFO refused merchant='a' reason='no\\nbudget'"
    )


def test_what_a_library_adds_to_every_record_is_no_field():
    assert line(msg="failed", _ray_timestamp_ns="1795703399589508568", round=3) == (
        "INFO failed round='3'"
    )


def test_an_exception_is_its_kind_and_where_it_was_raised(log_file):
    configure_logs(log_file)
    try:
        fail_at(1)
    except ValueError:
        logging.getLogger("handbill.test").exception("failed", extra={"round": 3})
    first, kind, *frames = log_file.read_text().splitlines()
    assert first.endswith("ERROR handbill.test failed round='3'")
    assert kind == "builtins.ValueError"
    assert [frame.rsplit(" in ")[1] for frame in frames] == [
        "test_an_exception_is_its_kind_and_where_it_was_raised",
        "fail_at",
        "fail_at",
    ]
    assert all(frame.startswith(f"  {__file__}:") for frame in frames)


def test_what_led_to_it_is_said_and_only_our_own_words_are(log_file):
    configure_logs(log_file)
    noted = KeyError(SECRET)
    noted.add_note(SECRET)
    error = LedgerError("is damaged", path=log_file)
    error.__cause__ = ExceptionGroup(SECRET, [noted])
    logging.getLogger("a.library").error("failed", exc_info=error)
    text = log_file.read_text()
    assert f"handbill.errors.LedgerError: {log_file}: is damaged\n" in text
    assert "of builtins.ExceptionGroup\n" in text
    assert "builtins.KeyError\n" in text
    assert SECRET not in text


def test_a_group_whose_member_came_of_it_has_an_end(log_file):
    configure_logs(log_file)
    inner = KeyError(SECRET)
    group = ExceptionGroup(SECRET, [inner])
    inner.__context__ = group
    logging.getLogger("handbill.test").error("failed", exc_info=group)
    assert log_file.read_text().count("ExceptionGroup") == 1
    assert log_file.read_text().count("KeyError") == 1


def test_a_library_with_its_own_handler_writes_no_text_either(log_file):
    configure_logs()
    library = logging.getLogger("a.library.of.its.own")
    handler = logging.FileHandler(log_file)
    library.addHandler(handler)
    try:
        fail_at(0)
    except ValueError as error:
        library.error("Request failed.", exc_info=error)
    finally:
        library.removeHandler(handler)
        handler.close()
    assert "Request failed.\nbuiltins.ValueError\n  " in log_file.read_text()
    assert SECRET not in log_file.read_text()


@pytest.mark.parametrize("where", ["fail()", "t = Thread(target=fail); t.start(); t.join()"])
def test_what_nobody_catches_is_logged_like_the_rest(where):
    program = f"""
from threading import Thread
from handbill.logs import configure_logs
def fail():
    int({SECRET!r})
configure_logs()
{where}
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "CRITICAL handbill.logs uncaught\nbuiltins.ValueError\n" in ended.stderr
    assert SECRET not in ended.stderr
