"""A database's errors name what failed, never the values that were written."""

import pytest
import sqlalchemy as sa

from handbill.server import orm as server
from handbill.serving import orm as serving


@pytest.mark.parametrize("connect", [server.connect, serving.connect], ids=["server", "serving"])
def test_an_error_of_the_database_quotes_no_value(connect, tmp_path):
    engine = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(sa.exc.OperationalError) as caught, engine.connect() as connection:
        connection.execute(sa.text("SELECT :name FROM nowhere"), {"name": "Anna Schmidt"})
    engine.dispose()
    assert "Anna" not in str(caught.value)
