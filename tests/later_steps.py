"""Steps of the schema that do not exist yet, for tests of migrations from one revision to the next."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from registry.server.database import schema
from registry.server.database.revision import migrations_folder

_STEP = """
from alembic import op
revision, down_revision, branch_labels, depends_on = "{after}", "{before}", None, None
def upgrade(): op.execute("{statement}")
"""


@contextlib.contextmanager
def later_steps(folder: Path, *statements: str) -> Iterator[tuple[str, ...]]:
    """Add a step for each statement after the newest one; yields the revision of before and those of the steps."""
    newest = schema.newest_revision()
    shutil.copytree(migrations_folder(), folder / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    added = [newest]
    for statement in statements:
        after = f"{int(added[-1]) + 1:04}"
        step = _STEP.format(after=after, before=added[-1], statement=statement)
        (folder / "migrations/versions" / f"{after}_step.py").write_text(step)
        added.append(after)
    with mock.patch.object(schema, "migrations_folder", return_value=folder / "migrations"):
        schema.revisions.cache_clear()
        try:
            yield tuple(added)
        finally:
            schema.revisions.cache_clear()
