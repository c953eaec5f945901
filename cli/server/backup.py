"""`adapter backup`: the database in the blob store. It runs on a server's machine, with the settings of that server."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from registry.server.database.engine import explain_failure, open_database
from registry.server.maintenance import backup
from registry.server.settings import Settings
from registry.server.storage.blobs import Stat
from registry.server.storage.open import open_store

from ..console import output, tables
from ..console.options import Group
from ..console.tables import Column, Table
from .config import CONFIG_OPTION, environment

KEPT = 14
BACKUPS: Table[Stat] = Table((
    Column("backup", backup.name_of, lambda stat: output.strong(backup.name_of(stat))),
    Column("size", lambda stat: output.size(stat.size_bytes)),
))  # fmt: skip


def _server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    data = click.option("--data", type=click.Path(file_okay=False), help="Folder of the SQLite file and the blobs.")
    return data(CONFIG_OPTION(command))


def _settings(data: str | None, config: str | None) -> Settings:
    return Settings.from_env(environment(config=config, data=data))


def _document(stat: Stat) -> dict[str, Any]:
    made_at = datetime.strptime(backup.name_of(stat) + "+0000", backup.TIME_FORMAT + "%z")
    return {"name": backup.name_of(stat), "made_at": made_at.isoformat(), "size_bytes": stat.size_bytes}


@click.group("backup", cls=Group)
def backup_group() -> None:
    """Backups of the database in the blob store: create, list, restore.

    With the blobs they are the whole registry but its audit key. PostgreSQL needs `pg_dump` and `pg_restore` here.
    """


@backup_group.command("create")
@_server_options
@click.option("--keep", type=click.IntRange(1, 10_000), default=KEPT, show_default=True,
              help="Backups to keep; older ones are deleted.")  # fmt: skip
def create_backup(data: str | None, config: str | None, keep: int) -> None:
    """Back the database up, also while servers work."""
    settings = _settings(data, config)
    engine = open_database(settings)
    with explain_failure(engine):
        stat = backup.create(engine, open_store(settings), keep=keep)
    engine.dispose()
    message = f"Backed up the database as {backup.name_of(stat)} ({output.size(stat.size_bytes)})."
    output.result(_document(stat), lambda: output.line(message))


@backup_group.command("list")
@_server_options
@tables.prints(BACKUPS)
def list_backups(data: str | None, config: str | None) -> None:
    """List the backups in the blob store, newest first."""
    stats = backup.find_all(open_store(_settings(data, config)))
    BACKUPS.print(stats, document={"items": [_document(stat) for stat in stats]})


@backup_group.command("restore")
@_server_options
@click.argument("name", default="")
def restore_backup(data: str | None, config: str | None, name: str) -> None:
    """Restore a backup into an empty database.

    The newest one by default. Stop the servers first.

    Run `adapter migrate` if the program is newer than the backup, and `adapter reindex` for newer versions.
    """
    settings = _settings(data, config)
    engine = open_database(settings)
    with explain_failure(engine):
        stat = backup.restore(engine, open_store(settings), name)
    message = f"Restored the backup {backup.name_of(stat)}. Start the server, and run `adapter reindex`."
    output.result(_document(stat), lambda: output.line(message))
