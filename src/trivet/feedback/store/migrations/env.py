"""Runs the migrations on the connection that `database.migrate` gives, inside its transaction."""

from alembic import context

from trivet.feedback.store.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata,
                  transactional_ddl=False, render_as_batch=True)
context.run_migrations()
