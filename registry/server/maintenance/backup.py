"""Backups of the whole database in the blob store, made by the database's own means: `VACUUM INTO`, `pg_dump`.

    backups/<time>/<hex>    an SQLite file, or an archive of `pg_dump --format=custom`

- A backup is one moment of the database, taken while servers work. It holds what the bucket does not say by itself:
  aliases, verdicts, tokens (their hashes), roles, reserved names, the audit log. It does not hold the audit key.
- Only an empty database is restored, from bytes that hash to their key. `reindex` then imports newer versions.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, inspect

from registry.digest import Hasher
from registry.errors import Conflict, Invalid, NotFound, Unavailable
from registry.server.database import db, dialects
from registry.server.storage.blobs import BlobStore, Stat, digest_of, write_blob

BACKUPS = "backups/"
TIME_FORMAT = "%Y%m%dT%H%M%SZ"
CHUNK_BYTES = 2**20
MESSAGE_LIMIT = 1000


def name_of(stat: Stat) -> str:
    """The name of a backup: when it was made, such as `20261202T181500Z`."""
    return stat.key.split("/")[1]


def find_all(blobs: BlobStore) -> list[Stat]:
    """All backups, the newest one first."""
    return sorted(blobs.list(BACKUPS), key=lambda stat: stat.key, reverse=True)


def create(engine: Engine, blobs: BlobStore, *, keep: int) -> Stat:
    """Back the database up, and delete all but the newest `keep` backups."""
    with tempfile.TemporaryDirectory(prefix="registry-backup-") as folder:
        file = Path(folder) / "database"
        if dialects.of(engine).is_file:
            _copy_sqlite(engine, file)
        else:
            _run(engine, ["pg_dump", "--format=custom", "--file", str(file)])
        hasher = Hasher()
        for chunk in _chunks(file):
            hasher.update(chunk)
        key = f"{BACKUPS}{datetime.now(UTC).strftime(TIME_FORMAT)}/{hasher.digest().hex}"
        stat = write_blob(blobs, key, _chunks(file), limit_bytes=hasher.size_bytes)
    for old in find_all(blobs)[keep:]:
        blobs.delete(old.key)
    return stat


def restore(engine: Engine, blobs: BlobStore, name: str = "") -> Stat:
    """Restore a backup, the newest one by default. `NotFound`; `Conflict` for a database that has tables."""
    stat = next((stat for stat in find_all(blobs) if name in ("", name_of(stat))), None)
    if stat is None:
        raise NotFound("BLOB_UNKNOWN", f"the blob store has no backup {name[:80]!r}" if name else "there is no backup")
    with db.translate_errors():
        if inspect(engine).get_table_names():
            message = "the database is not empty: a restore never replaces one"
            raise Conflict("NAME_TAKEN", message, next_step="name an empty database, or move the file away")
    engine.dispose()
    if dialects.of(engine).is_file:
        target = Path(str(engine.url.database))
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=target.parent) as folder:
            file = _download(blobs, stat, Path(folder))
            for suffix in ("-wal", "-shm"):
                target.with_name(target.name + suffix).unlink(missing_ok=True)
            file.replace(target)
    else:
        with tempfile.TemporaryDirectory(prefix="registry-restore-") as folder:
            file = _download(blobs, stat, Path(folder))
            _run(engine, ["pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", str(file)])
    return stat


def _copy_sqlite(engine: Engine, file: Path) -> None:
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("VACUUM INTO ?", (str(file),))
    finally:
        connection.close()


def _run(engine: Engine, command: list[str]) -> None:
    """Run a program of PostgreSQL on this database. `Unavailable` with what it says if it fails or is not there."""
    program = shutil.which(command[0])
    if program is None:
        next_step = "install the client programs of PostgreSQL, of the server's version or a later one"
        raise Unavailable("DATABASE_UNAVAILABLE", f"{command[0]} is not on this machine", next_step=next_step)
    url = engine.url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    password = {"PGPASSWORD": str(engine.url.password)} if engine.url.password else {}  # not for the list of processes
    run = subprocess.run(
        [program, "--dbname", url, *command[1:]], env={**os.environ, **password}, capture_output=True, text=True
    )
    if run.returncode:
        raise Unavailable("DATABASE_UNAVAILABLE", f"{command[0]}: {run.stderr.strip()[-MESSAGE_LIMIT:]}")


def _download(blobs: BlobStore, stat: Stat, folder: Path) -> Path:
    """The bytes of a backup as a file that survives a power cut. `Invalid` (BLOB_MISMATCH) if they are damaged."""
    hasher = Hasher()
    with (folder / "database").open("wb") as file:
        for chunk in blobs.open(stat.key):
            hasher.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if hasher.digest() != digest_of(stat.key):
        raise Invalid("BLOB_MISMATCH", f"the bytes of backup {name_of(stat)} hash to {hasher.digest()}")
    return folder / "database"


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            yield chunk
