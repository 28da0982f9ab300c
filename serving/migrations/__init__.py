"""Alembic migrations of the serving database, from its first table on."""

from pathlib import Path

from alembic import command
from alembic.config import Config


def migrate(url: str, revision: str = "head") -> None:
    """Bring a database to a revision: up, from empty as well.

    Args:
        url: SQLAlchemy URL.
        revision: The newest by default.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["url"] = url
    command.upgrade(config, revision)
