"""Names in an SQLite database, for a shell's completion: neither SQLAlchemy nor a table's class is imported."""

import contextlib
import re
import sqlite3
from itertools import islice
from pathlib import Path

from registry.bases import UNREGISTERED
from registry.names import NEWEST
from registry.server.settings import Settings

try:
    import pysqlite3.dbapi2 as sqlite
except ImportError:  # not on this platform
    sqlite = sqlite3

_STEPS_LIMIT = 20_000_000
"""Of SQLite's machine for a completion: a second or two. 100,000 adapters take far fewer."""
_SELECT_ADAPTER = "SELECT id FROM adapter WHERE namespace = :namespace AND name = :name"
_STATEMENTS = {
    "ref": "SELECT namespace || '/' || name FROM adapter ORDER BY namespace, name",
    ":": "SELECT :path || ':' || alias FROM alias WHERE adapter_id = :adapter_id AND alias != :newest",
    "@": "SELECT :path || '@' || number FROM version WHERE adapter_id = :adapter_id ORDER BY number DESC",
    "namespace": "SELECT DISTINCT namespace FROM adapter ORDER BY namespace",
    "base": "SELECT name FROM base WHERE fingerprint != :unregistered ORDER BY name",
    "alias": "SELECT DISTINCT alias FROM alias WHERE alias != :newest",
    "alias of": "SELECT alias FROM alias WHERE adapter_id = :adapter_id AND alias != :newest"
    " UNION ALL SELECT alias FROM adapter_gate WHERE adapter_id = :adapter_id"
    " UNION ALL SELECT alias FROM namespace_gate WHERE namespace = :namespace",
}


def find_names(kind: str, beginning: str, path: str = "", *, limit: int) -> list[str] | None:
    """Names of a kind that begin so: `ref`, `namespace`, `base` or `alias`; aliases only of `path` if it is not empty.

    None if the registry's database is not SQLite. Errors are those of `sqlite3` and `Settings`.
    """
    file = Settings.from_env().database_url.removeprefix("sqlite:///")
    if "://" in file:
        return None
    if kind == "alias" and path:
        kind = "alias of"
    elif kind == "ref" and (match := re.match("(.*?)([:@])", beginning)):
        path, kind = match.groups()
    namespace, _, name = path.partition("/")
    values = {"path": path, "namespace": namespace, "name": name, "unregistered": UNREGISTERED, "newest": NEWEST}
    # Not with `mode=ro`: the last connection that closes folds the write-ahead log into the file.
    with contextlib.closing(sqlite.connect(f"{Path(file).as_uri()}?mode=rw", uri=True, timeout=1)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.set_progress_handler(lambda: 1, _STEPS_LIMIT)  # then it is interrupted
        row = connection.execute(_SELECT_ADAPTER, values).fetchone()
        rows = connection.execute(_STATEMENTS[kind], values | {"adapter_id": row[0] if row else None})
        return list(islice(dict.fromkeys(text for (text,) in rows if text.startswith(beginning)), limit))
