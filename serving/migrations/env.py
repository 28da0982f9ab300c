"""Alembic's entry: runs the migrations on the database that :func:`migrate` names."""

from alembic import context

from handbill.serving.orm import Base, connect

engine = connect(context.config.attributes["url"])
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table="serving_version",
        render_as_batch=True,  # SQLite changes a column by copying its table
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
