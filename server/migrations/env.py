"""What Alembic runs: migrate over the connection that ``database.migrate`` opened."""

from alembic import context

from handbill.server.orm import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # SQLite too: all migrations or none
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
