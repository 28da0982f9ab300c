import threading

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from handbill.errors import InputError
from handbill.server.database import migrate
from handbill.server.orm import Base, connect
from handbill.serving.orm import connect as serving_connect

pytestmark = pytest.mark.integration


def test_from_empty_the_schema_equals_the_tables_in_code(database_url):
    migrate(database_url)
    engine = connect(database_url)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        tables = set(sa.inspect(connection).get_table_names())
        indexes = {index["name"] for index in sa.inspect(connection).get_indexes("round")}
    engine.dispose()
    assert tables >= {"merchant", "run", "round", "artifact", "channel", "audit"}
    assert "uq_round_committed" in indexes


def test_migrating_twice_and_at_once_is_the_same_as_once(database_url):
    errors = []
    together = threading.Barrier(3)

    def run():
        together.wait()
        try:
            migrate(database_url)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    migrate(database_url)
    assert errors == []


@pytest.mark.parametrize("connect", [connect, serving_connect], ids=["server", "serving"])
def test_a_new_file_of_sqlite_is_opened_by_many_at_once(tmp_path, connect):
    # Without waiting for each other's switch to the write-ahead log, 40 such openings failed here
    # in nearly every run.
    errors = []
    together = threading.Barrier(6)

    def run(number):
        together.wait()
        try:
            engine = connect(f"sqlite:///{tmp_path / f'{number}.db'}")
            with engine.begin() as connection:
                connection.execute(sa.text("SELECT 1"))
            engine.dispose()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    for number in range(40):
        threads = [threading.Thread(target=run, args=(number,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_database_of_a_newer_handbill_is_refused(database_url):
    migrate(database_url)
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v9999'"))
    engine.dispose()
    with pytest.raises(InputError, match="newer handbill"):
        migrate(database_url)


def test_sqlite_is_power_safe_and_checks_foreign_keys(tmp_path):
    engine = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.begin() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    engine.dispose()
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url", "HANDBILL_DATABASE"),
        ("sqlite:////nowhere/at/all/server.db", "cannot be opened"),
        ("postgresql://me:secret@127.0.0.1:1/x", "cannot be opened"),
    ],
)
def test_a_bad_url_is_one_clear_error_without_the_password(url, message):
    with pytest.raises(InputError, match=message) as caught:
        migrate(url)
    assert "secret" not in str(caught.value)
