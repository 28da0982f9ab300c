"""Bring a database to the newest schema: Alembic, from an empty database on."""

from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from handbill.errors import InputError
from handbill.server.orm import DatabaseError, connect, shown_url


def migrate(url: str) -> None:
    """Apply every migration that the database has not seen, in one transaction.

    Two processes may call this at once: the second waits and then finds nothing to do.

    Args:
        url: ``sqlite:///<file>`` or ``postgresql://…``.

    Raises:
        InputError: the database cannot be opened, or was made by a newer handbill.
    """
    engine = connect(url)
    try:
        with as_file(files("handbill.server") / "migrations") as folder, engine.begin() as begun:
            config = Config()
            config.set_main_option("script_location", str(folder).replace("%", "%%"))
            config.attributes["connection"] = begun
            command.upgrade(config, "head")
    except CommandError as error:
        raise InputError(
            f"database {shown_url(url)}: {error}; it was made by a newer handbill, upgrade this one"
        ) from error
    except DatabaseError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"database {shown_url(url)} cannot be opened: {reason}; check HANDBILL_DATABASE"
        ) from error
    finally:
        engine.dispose()
