"""A journal of an earlier Errata is led through the steps that it lacks, by Alembic."""

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from errata.journal import migrations


def script() -> ScriptDirectory:
    """The steps."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    return ScriptDirectory.from_config(config)


def upgrade(connection: Connection, to: str = "head") -> None:
    """Does the steps that are missing, inside the connection's transaction."""
    steps = script()

    def missing(revision: Any, context: Any) -> Any:
        return steps._upgrade_revs(to, revision)  # as Alembic's own cookbook does it

    with EnvironmentContext(Config(), steps, fn=missing) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
