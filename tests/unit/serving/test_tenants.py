import logging
import sqlite3
from datetime import timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import handbill.serving.canary_repository  # noqa: F401 - its table is compared, too
from handbill.errors import InputError, MissingError
from handbill.serving.config import ServingConfig
from handbill.serving.errors import InvalidKeyError
from handbill.serving.keys import ApiKey, load_or_create_pepper
from handbill.serving.migrations import migrate
from handbill.serving.orm import Base, connect, utc_now
from handbill.serving.repository import DatabaseMarks, Repository, Usage
from handbill.serving.tenants import Caller, open_tenants


@pytest.fixture
def config(tmp_path):
    return ServingConfig(registry=tmp_path / "registry", state=tmp_path / "serving")


@pytest.fixture
def tenants(config):
    tenants = open_tenants(config)
    tenants.add("acme", "Acme")
    yield tenants
    tenants.close()


def test_migrations_make_the_tables_of_the_orm_from_empty(tmp_path):
    url = f"sqlite:///{tmp_path / 'new.db'}"
    migrate(url)
    migrate(url)
    with connect(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "serving_version"})
        assert compare_metadata(context, Base.metadata) == []


def test_sqlite_is_set_to_survive_a_power_cut(config, tenants):
    with connect(config.url).connect() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert settings == ["wal", 2, 1]


def test_a_key_proves_its_tenant(tenants):
    key = tenants.new_key("acme")
    assert tenants.authenticate(key.reveal()) == Caller(tenant="acme", key=key.id)


@pytest.mark.parametrize("wrong", ["secret", "id", "checksum", "empty", "garbage", "long"])
def test_every_wrong_key_ends_in_the_same_error(tenants, wrong):
    key = tenants.new_key("acme")
    text = {
        "secret": ApiKey(key.id, ApiKey.new().secret).reveal(),
        "id": ApiKey("zzzzzzzz", key.secret).reveal(),
        "checksum": key.reveal()[:-1] + ("0" if key.reveal()[-1] != "0" else "1"),
        "empty": "",
        "garbage": "hb_' OR 1=1 --",
        "long": key.reveal() * 100,
    }[wrong]
    with pytest.raises(InvalidKeyError) as caught:
        tenants.authenticate(text)
    assert str(caught.value) == str(InvalidKeyError())


def test_a_revoked_and_an_expired_key_prove_nothing(tenants, config):
    revoked, expired = tenants.new_key("acme"), tenants.new_key("acme", days=0)
    tenants.revoke(revoked.id)
    tenants.revoke(revoked.id)
    for key in (revoked, expired):
        with pytest.raises(InvalidKeyError):
            tenants.authenticate(key.reveal())
    states = [key["state"] for key in tenants.list()[0]["keys"]]
    assert sorted(states) == ["expired", "revoked"]


def test_a_tenant_has_two_live_keys_at_most(tenants):
    first = tenants.new_key("acme")
    tenants.new_key("acme")
    with pytest.raises(InputError, match="revoke"):
        tenants.new_key("acme")
    tenants.revoke(first.id)
    tenants.new_key("acme")


def test_keys_of_other_scopes_are_counted_apart_and_prove_their_scopes(tenants):
    for scopes in ((), ["feedback"], ["feedback", "generate"]):
        for _ in range(2):
            key = tenants.new_key("acme", scopes=scopes)
        with pytest.raises(InputError, match="live keys for"):
            tenants.new_key("acme", scopes=scopes)
        caller = tenants.authenticate(key.reveal())
        assert caller.scopes == frozenset(scopes or {"generate", "feedback", "manage"})
    with pytest.raises(InputError, match="'boss' is not one of generate"):
        tenants.new_key("acme", scopes=["boss"])


def test_keys_from_before_there_were_scopes_may_do_everything(config):
    config.state.mkdir(parents=True)
    migrate(config.url, "0004")
    with connect(config.url).begin() as connection:
        connection.exec_driver_sql("INSERT INTO tenant VALUES ('acme', 'Acme', '2025-01-01')")
        connection.exec_driver_sql(
            "INSERT INTO api_key (id, tenant_id, mac, created_at) "
            "VALUES ('abcdefgh', 'acme', 'x', '2025-01-01')"
        )
    migrate(config.url)
    scopes = Repository(config.url).live_key("abcdefgh").scopes
    assert scopes == {"generate", "feedback", "manage"}


def test_what_is_not_there_or_not_allowed_is_refused(tenants):
    with pytest.raises(MissingError, match="tenants add"):
        tenants.new_key("nobody")
    with pytest.raises(MissingError):
        tenants.revoke("zzzzzzzz")
    with pytest.raises(InputError, match="already"):
        tenants.add("acme")
    for name in ("handbill", "default", "../acme", "A", "x" * 64):
        with pytest.raises(InputError):
            tenants.add(name)


def test_keys_are_in_no_database_log_or_repr(tenants, config, caplog):
    with caplog.at_level(logging.DEBUG):
        keys = [tenants.new_key("acme") for _ in range(2)]
        for key in keys:
            tenants.authenticate(key.reveal())
    with sqlite3.connect(config.state / "serving.db") as database:
        dump = "\n".join(database.iterdump())
    raw = b"".join(file.read_bytes() for file in config.state.glob("serving.db*"))
    pepper = config.pepper.read_bytes()
    for key in keys:
        assert key.secret not in dump + caplog.text + repr(key) + repr(keys)
        assert key.secret.encode() not in raw
        assert key.id in dump
    assert pepper not in raw


def test_the_pepper_is_its_owners_and_whole(tmp_path):
    path = tmp_path / "pepper"
    assert load_or_create_pepper(path) == load_or_create_pepper(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(InputError, match="0600"):
        load_or_create_pepper(path)


def test_a_stolen_database_is_useless_without_the_pepper(tenants, config):
    key = tenants.new_key("acme")
    config.pepper.unlink()
    other = open_tenants(config)
    with pytest.raises(InvalidKeyError):
        other.authenticate(key.reveal())
    other.close()


def test_usage_is_written_and_asked_by_tenant(tenants, config):
    tenants.add("bolt")
    for tenant, tokens in (("acme", 5), ("acme", 7), ("bolt", 1)):
        tenants.record(
            Usage(
                tenant=tenant,
                key="k" * 8,
                request="r",
                endpoint="/v1/copy",
                artifact="sha256:0",
                prompt_tokens=10,
                completion_tokens=tokens,
                outcome="done",
                started_at=utc_now() - timedelta(seconds=1),
                duration_ms=1000,
            )
        )
    tenants.close()
    repository = Repository(config.url)
    assert [row.completion_tokens for row in repository.usage("acme")] == [5, 7]
    assert [row["completion_tokens"] for row in repository.tenants()] == [12, 1]


def test_a_channel_mark_never_goes_back(tenants, config):
    marks = DatabaseMarks(config.url)
    assert marks.read("_global") == (0, "")
    marks.write("_global", 4, "sha256:a")
    marks.write("_global", 3, "sha256:b")
    assert DatabaseMarks(config.url).read("_global") == (4, "sha256:a")
