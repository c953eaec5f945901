"""A registry with many adapters: rows written straight into the tables, as copies of one pushed adapter.

`acme/shop-000000` … differ in name, rank and words; each has a version with the same files, aliases, words, tags,
verdicts, and a push and a job that have ended. `acme/zz-rare` comes last by name, and nothing else has its base, alias,
owner, word, tag, rank, method and outcomes. Half of the others have the annotation `parity=odd`, and the other half the
ranks 8 and 32: only `zz-rare` has both that annotation and a low rank.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, text, update
from sqlmodel import col, select

from registry.server.database.models import (
    AdapterRow,
    AdapterTextRow,
    AliasRow,
    VerdictRow,
    VersionAttributeRow,
    VersionFileRow,
    VersionRow,
)
from registry.server.database.models.jobs import JobRow
from registry.server.database.models.pushes import PushRow
from tests import samples
from tests.harness import Harness

PUSHED, RARE = "acme/a-pushed-one", "acme/zz-rare"
BATCH = 1000
TABLES: tuple[Any, ...] = (
    AdapterRow, VersionRow, VersionFileRow, AliasRow, AdapterTextRow, VersionAttributeRow, VerdictRow, JobRow, PushRow
)  # fmt: skip
_FIRST_ID = 1000


def fill(harness: Harness, adapters: int) -> None:
    """Write so many adapters, the two that are pushed included."""
    harness.add_base()
    rare = samples.llama("rare-llama", seed=5)
    harness.add_base(rare)
    harness.push(PUSHED, annotations={"tier": "gold", "parity": "even"})
    templates = _read_templates(harness)
    for start in range(0, adapters - 2, BATCH):
        numbers = range(start, min(start + BATCH, adapters - 2))
        with harness.session(write=True) as session:  # each row changes counters, whose old rows only a commit ends
            for table, rows in _copies(templates, numbers).items():
                session.connection().execute(insert(table), rows)
    harness.push(
        RARE, harness.files(rare) | {"README.md": b"# quokka\n"}, base=rare.name, alias="rare",
        annotations={"tier": "rare", "parity": "odd"},
    )  # fmt: skip
    with harness.session(write=True) as session:
        session.connection().execute(
            update(AdapterRow).where(col(AdapterRow.name) == "zz-rare").values(created_by="rare-owner")
        )
        own = select(AdapterRow.id).where(AdapterRow.name == "zz-rare").scalar_subquery()
        session.connection().execute(
            update(VersionRow).where(col(VersionRow.adapter_id) == own).values(rank=3, method="LOHA")
        )
        versions = select(VersionRow.id).where(col(VersionRow.adapter_id) == own)
        for check, outcome in (("compat", "warn"), ("weights", "unknown")):
            is_own = (col(VerdictRow.version_id).in_(versions), col(VerdictRow.check) == check)
            session.connection().execute(update(VerdictRow).where(*is_own).values(outcome=outcome))
    with harness.engine.connect() as connection:
        connection.execute(text("ANALYZE"))
        connection.commit()


def _read_templates(harness: Harness) -> dict[Any, list[dict[str, Any]]]:
    with harness.session() as session:
        return {table: [row.model_dump() for row in session.exec(select(table)).all()] for table in TABLES}


def _copies(templates: dict[Any, list[dict[str, Any]]], numbers: range) -> dict[Any, list[dict[str, Any]]]:
    """Table → the rows of these adapters, parents first."""
    rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in templates}
    for number in numbers:
        id = _FIRST_ID + number
        changes: dict[Any, dict[str, Any]] = {
            AdapterRow: {"id": id, "name": f"shop-{number:06d}"},
            VersionRow: {
                "id": id, "adapter_id": id, "digest": f"sha256:{id:064x}", "rank": (8, 16, 32, 64)[id % 4]
            },
            VersionFileRow: {"version_id": id},
            AliasRow: {"adapter_id": id, "version_id": id},
            AdapterTextRow: {
                "adapter_id": id, "version_id": id,
                "name_words": f" acme shop {number:06d} card{number % 1000} kind{number % 4}",
            },
            VersionAttributeRow: {"version_id": id},
            VerdictRow: {"version_id": id},
            JobRow: {"id": f"job_{id:020d}", "version_id": id, "subject": f"acme/shop-{number:06d}@1", "state": "done",
                     "worker": f"worker-{id % 4}"},
            PushRow: {"id": f"push_{id:020d}"},
        }  # fmt: skip
        for table, change in changes.items():
            for position, template in enumerate(templates[table]):
                key: dict[str, Any] = {"id": 10 * id + position} if table is VerdictRow else {}
                if template.get("key") == "parity":
                    key["value"] = ("even", "odd")[id % 2]
                rows[table].append(template | change | key)
    return rows
