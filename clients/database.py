"""Tables of a database the shop runs already, read through SQLAlchemy.

The connection is for reading: SQLite files are opened read-only, PostgreSQL, MySQL and MariaDB are
asked for a read-only transaction; elsewhere give an account that may only select. A password is
never in a description: it comes from the environment.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, NoSuchTableError, SQLAlchemyError

from handbill.clients.descriptions import PASSWORD_VARIABLE
from handbill.clients.tables import Record, parse_fields
from handbill.errors import InputError

ROWS_AT_ONCE: Final = 1024
_SECRET_OPTIONS: Final = ("password", "passwd", "pwd", "sslpassword", "token")
_DRIVERS: Final[dict[str, str]] = {
    "postgresql": "pip install 'handbill[postgres]'",
    "mysql": "pip install pymysql and write mysql+pymysql://",
    "mariadb": "pip install pymysql and write mariadb+pymysql://",
    "mssql": "pip install pyodbc and write mssql+pyodbc://",
    "oracle": "pip install oracledb and write oracle+oracledb://",
}
_READ_ONLY: Final = {
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}


@dataclass(frozen=True)
class Database:
    """A shop's database.

    Attributes:
        url: SQLAlchemy's; holds no password.
        password_env: Environment variable the password is in; "" for none.
        folder: What the path of an SQLite file is relative to.
    """

    url: sa.URL = field(repr=False)
    password_env: str = ""
    folder: Path = Path()

    @classmethod
    def of(cls, text: str, *, password_env: str = "", folder: Path = Path()) -> "Database":
        """Take a URL apart.

        Raises:
            InputError: It is no URL of SQLAlchemy, or holds a password.
        """
        try:
            url = sa.make_url(text)
        except (ArgumentError, ValueError):
            raise InputError(
                "database.url: not a database URL such as postgresql+psycopg://reader@host/shop or "
                "sqlite:///shop.db"
            ) from None
        if url.password or any(name.lower() in _SECRET_OPTIONS for name in url.query):
            raise InputError(
                "database.url: holds a password, which whoever reads the file then has: put it in an "
                f"environment variable and name this in database.password_env, such as "
                f'password_env = "{PASSWORD_VARIABLE}"'
            )
        if url.drivername in {"postgres", "postgresql"}:  # the driver that comes with the extra
            url = url.set(drivername="postgresql+psycopg")
        return cls(url, password_env, folder)

    @property
    def name(self) -> str:
        """The database for messages."""
        return self.url.render_as_string(hide_password=True)

    @cached_property
    def engine(self) -> sa.Engine:
        """The engine, made once.

        Raises:
            InputError: A driver or the password is missing.
        """
        url = self._located()
        if self.password_env:
            password = os.environ.get(self.password_env, "")
            if not password:
                raise InputError(
                    f"{self.name}: {self.password_env} is not set; it has the password"
                )
            url = url.set(password=password)
        backend = url.get_backend_name()
        try:
            engine = sa.create_engine(url, hide_parameters=True, poolclass=sa.NullPool)
        except (NoSuchModuleError, ImportError):
            remedy = _DRIVERS.get(backend, "install its SQLAlchemy dialect")
            raise InputError(f"{self.name}: no driver for {backend}; {remedy}") from None
        except (SQLAlchemyError, TypeError) as error:
            raise InputError(f"{self.name}: cannot be used ({type(error).__name__})") from None
        return engine

    def tables(self) -> tuple[str, ...]:
        """Names of its tables and views, sorted.

        Raises:
            InputError: It cannot be reached or read.
        """
        with self.connected() as connection:
            inspector = sa.inspect(connection)
            return tuple(sorted({*inspector.get_table_names(), *inspector.get_view_names()}))

    @contextmanager
    def connected(self) -> Iterator[sa.Connection]:
        """Connect for reading; every error becomes one line without a statement or value.

        Raises:
            InputError: It cannot be reached or read.
        """
        backend = self.url.get_backend_name()
        try:
            with self.engine.connect() as opened:
                connection = opened
                if backend == "postgresql":
                    connection = opened.execution_options(postgresql_readonly=True)
                elif backend in _READ_ONLY:
                    opened.exec_driver_sql(_READ_ONLY[backend])
                yield connection
        except SQLAlchemyError as error:
            # The driver's own words may quote a row or the whole connection string.
            cause = getattr(error, "orig", None) or error
            raise InputError(
                f"{self.name}: cannot be read ({type(cause).__name__}); is the address right, may "
                f"this account select?"
            ) from None

    def _located(self) -> sa.URL:
        """The URL to connect to: an SQLite file must be there, and is opened for reading."""
        if self.url.get_backend_name() != "sqlite":
            return self.url
        name = self.url.database or ""
        if not name or name == ":memory:" or name.startswith("file:"):
            raise InputError(f"{self.name}: name a file, such as sqlite:///shop.db")
        path = (self.folder / name).absolute()
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        return self.url.set(database=path.as_uri(), query={"mode": "ro", "uri": "true"})


@dataclass(frozen=True)
class DatabaseTable:
    """A table, a view or a query of a database; one of ``table`` and ``query`` is given.

    A table is read in the order of its primary key, so that a row keeps its number; a query in the
    order it asks for.
    """

    database: Database
    table: str = ""
    query: str = ""
    section: str = ""

    @property
    def name(self) -> str:
        """The table, or which section of the description has the query."""
        return self.table or f"{self.section} query"

    @property
    def place(self) -> str:
        """The database and the table."""
        return f"{self.database.name} {self.name}"

    def columns(self) -> tuple[str, ...]:
        """The columns the database names.

        Raises:
            InputError: The database cannot be read, or has no such table.
        """
        with self._result() as result:
            return tuple(result.keys())

    def records(self) -> Iterator[Record]:
        """Rows as they come from the server, numbered from 1.

        Raises:
            InputError: As :meth:`columns`.
        """
        with self._result() as result:
            for number, row in enumerate(result.mappings(), start=1):
                yield _record(number, row)

    @contextmanager
    def _result(self) -> Iterator[sa.CursorResult[Any]]:
        with self.database.connected() as connection:
            streaming = connection.execution_options(
                stream_results=True, yield_per=ROWS_AT_ONCE, max_row_buffer=ROWS_AT_ONCE
            )
            if self.query:
                # The shop's own words: neither colons nor percent signs are placeholders.
                result = streaming.exec_driver_sql(
                    self.query, execution_options={"no_parameters": True}
                )
                if not result.returns_rows:
                    raise InputError(f"{self.name}: gives no rows; it has to be a SELECT")
            else:
                result = streaming.execute(self._selection(connection))
            with closing(result):
                yield result

    def _selection(self, connection: sa.Connection) -> sa.Select[Any]:
        schema, _, name = self.table.rpartition(".")
        inspector = sa.inspect(connection)
        try:
            names = [column["name"] for column in inspector.get_columns(name, schema or None)]
        except NoSuchTableError:
            raise InputError(
                f"{self.database.name}: has no table {self.table!r}; "
                f"it has {', '.join(self.database.tables()) or 'none'}"
            ) from None
        key = inspector.get_pk_constraint(name, schema or None)["constrained_columns"]
        # Columns without types: values stay as the driver gives them.
        table = sa.table(name, *map(sa.column, names), schema=schema or None)
        return sa.select(table).order_by(*(table.c[column] for column in key))


def _record(number: int, row: Mapping[Any, Any]) -> Record:
    named = {str(name): _plain(value) for name, value in row.items()}
    problem, values = parse_fields(named)
    raw = json.dumps(named, ensure_ascii=False, default=str)
    return Record(line=number, values=values, raw=raw, problem=problem)


def _plain(value: Any) -> Any:
    """A value of a driver as JSON has it: times as ISO 8601, decimals and ids as text."""
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).decode("utf-8", errors="surrogateescape")
    if value is None or isinstance(value, (str, bool, int, float, list, dict)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
