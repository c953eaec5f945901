"""Search: every filter, pages by key, and that a later page costs what the first does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlmodel import select

from registry.api.catalog import AdapterPage, MetadataChange
from registry.errors import Invalid
from registry.server.database.models import AdapterRow, AliasRow, VersionMetadataRow, VersionRow, VersionTagRow
from tests import forge
from tests.identities import forge as forge_identity
from tests.identities import nudged, values
from tests.world import World

VLLM = "vllm==0.33.0"


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url, engines=VLLM) as made:
        made.add_base()
        made.add_base(forge.gpt2())
        yield made


def found(world: World, **search: Any) -> list[str]:
    return [item.name for item in world.admin.adapters(**search).items]


def test_each_filter_finds_what_it_names_and_nothing_else(world: World) -> None:
    world.push("acme/attention", world.files(rank=4, targets=("q_proj", "v_proj")))
    world.push("acme/everything", world.files(rank=64, targets=("q_proj", "v_proj", "down_proj")))
    fused = forge.lora(forge.gpt2(), seed=9, targets=("c_attn",))
    world.push("lab/conv1d", fused, base="tiny-gpt2", by=world.actor("push", name="lea"))
    assert found(world, base="tiny-gpt2") == ["lab/conv1d"]
    assert found(world, owner="lea") == ["lab/conv1d"]
    assert found(world, namespace="acme", method="lora") == ["acme/attention", "acme/everything"]
    assert found(world, rank_min=8, namespace="acme") == ["acme/everything"]
    assert found(world, rank_max=4, namespace="acme") == ["acme/attention"]
    assert found(world, rank_min=4, rank_max=64, text="every") == ["acme/everything"]
    assert found(world, target=["q_proj"]) == ["acme/attention", "acme/everything"]
    assert found(world, target=["q_proj", "down_proj"]) == ["acme/everything"]
    assert found(world, target=["proj"]) == []
    assert found(world, target=["%"]) == []
    assert found(world, format="peft", namespace="lab") == ["lab/conv1d"]
    assert found(world, format="kohya") == []
    assert found(world, engine=VLLM, namespace="acme") == ["acme/attention"]
    assert found(world, engine=VLLM, outcome="fail", namespace="acme") == ["acme/everything"]


def test_search_by_base_match_finds_adapters_of_related_bases(world: World) -> None:
    one = values()
    told = {
        "tiny-llama": forge_identity(one), "cast": forge_identity(nudged(one, 0.0005), dtype="BF16"),
        "tuned": forge_identity(nudged(one, 0.05)), "outsider": forge_identity(values(1)),
    }  # fmt: skip
    for name, identity in told.items():
        if name != "tiny-llama":
            world.add_base(forge.llama(name))
        world.admin.identify_base(name, identity)
        world.push(f"acme/for-{name}", world.files(), base=name)
    assert found(world, base="tiny-llama") == ["acme/for-tiny-llama"]
    assert found(world, base="tiny-llama", base_match="exact") == ["acme/for-tiny-llama"]
    assert found(world, base="tiny-llama", base_match="other-dtype") == ["acme/for-cast", "acme/for-tiny-llama"]
    everything = ["acme/for-cast", "acme/for-tiny-llama", "acme/for-tuned"]
    assert found(world, base="tiny-llama", base_match="descendant") == everything
    assert found(world, base="cast", base_match="descendant") == everything
    with pytest.raises(Invalid, match="base_match: needs `base`"):
        found(world, base_match="exact")


def test_annotations_are_found_by_key_and_by_value_and_belong_to_the_newest_version(world: World) -> None:
    world.push("acme/a", annotations={"team": "search", "tier": "gold"})
    world.push("acme/b", annotations={"team": "support"})
    world.push("acme/c", annotations={"report": "x" * 1000})
    assert found(world, annotation=["team"]) == ["acme/a", "acme/b"]
    assert found(world, annotation=["team=search"]) == ["acme/a"]
    assert found(world, annotation=["team", "tier=gold"]) == ["acme/a"]
    assert found(world, annotation=["team=search", "tier=silver"]) == []
    assert found(world, annotation=["report"]) == []  # too long for an index; it stays in the manifest
    world.push("acme/a", annotations={"tier": "gold"})
    assert found(world, annotation=["team"]) == ["acme/b"]


def test_search_by_an_engine_without_stored_verdicts_is_an_error(world: World) -> None:
    with pytest.raises(Invalid, match=r"stores no verdicts of .*, only of: vllm"):
        world.admin.adapters(engine="vllm==0.32.0")


def test_only_the_newest_version_and_its_newest_verdict_count(world: World) -> None:
    world.push("acme/support", world.files(rank=64))
    assert found(world, engine=VLLM) == []
    world.push("acme/support", world.files(rank=8))
    assert found(world, engine=VLLM) == ["acme/support"]
    assert found(world, rank_min=64) == []


def test_an_invalid_rank_is_a_bad_request(world: World) -> None:
    with pytest.raises(Invalid) as caught:
        world.admin.adapters(rank_min=-1)
    assert caught.value.code == "REQUEST_INVALID"


def shelve(world: World, count: int) -> None:
    """Adapters like the first one, as rows alone."""
    world.push("acme/a", annotations={"team": "search"})
    world.admin.describe("acme/a@1", MetadataChange(tags={"team": "search"}))
    with world.session(write=True) as session:
        adapter = session.exec(select(AdapterRow)).one().model_dump()
        version = session.exec(select(VersionRow)).one().model_dump()
        for name in ("id", "created_at", "updated_at"):
            version.pop(name, None)
        adapter.pop("id")
        moment = adapter["created_at"]
        names = [adapter | {"name": f"b{i:05d}"} for i in range(count)]
        session.connection().execute(insert(AdapterRow), names)
        ids = session.exec(select(AdapterRow.id).where(AdapterRow.name != "a").order_by(AdapterRow.name)).all()
        rows = [version | {"id": 1000 + id, "adapter_id": id, "created_at": moment} for id in ids]
        session.connection().execute(insert(VersionRow), rows)
        main = session.exec(select(AliasRow)).one().model_dump()
        aliases = [main | {"adapter_id": row["adapter_id"], "version_id": row["id"]} for row in rows]
        session.connection().execute(insert(AliasRow), aliases)
        for table in (VersionTagRow, VersionMetadataRow):
            carried = [tag.model_dump() for tag in session.exec(select(table)).all()]
            tags = [tag | {"version_id": row["id"]} for row in rows for tag in carried]
            session.connection().execute(insert(table), tags)


def counted(world: World, cursor: str) -> tuple[AdapterPage, int]:
    """A page and its statements: the fewest of some tries, since what follows a push may still be at work beside it."""
    counts = []
    for _ in range(8):
        with world.statements() as sent:
            page = world.admin.adapters(limit=20, cursor=cursor)
        counts.append(len(sent))
    return page, min(counts)


def test_a_later_page_continues_and_costs_no_more_statements(world: World) -> None:
    shelve(world, 300)
    first, sent = counted(world, "")
    assert first.next_cursor == "acme/b00018"
    seen, cursor = list(first.items), first.next_cursor
    while cursor:
        page, later = counted(world, cursor)
        seen, cursor = seen + page.items, page.next_cursor
        assert later <= sent
    assert [item.name for item in seen] == ["acme/a", *(f"acme/b{i:05d}" for i in range(300))]


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"namespace": "acme"},
        {"method": "lora"},
        {"rank_min": 4},
        {"tag": ["team=search"]},
        {"annotation": ["team=search"]},
        {"owner": "admin"},
        {"target": ["q_proj", "v_proj"]},
        {"format": "peft"},
    ],
    ids=lambda search: ",".join(search) or "all",
)
def test_no_page_reads_the_adapters_before_it_or_all_versions(
    world: World, database_kind: str, search: dict[str, Any]
) -> None:
    shelve(world, 3000)
    with world.session(write=True) as session:
        session.connection().execute(text("ANALYZE"))
    plan = explained(world, "acme/b01500", search)
    if database_kind == "sqlite":
        assert any("SEARCH adapter USING INDEX" in line and "namespace" in line for line in plan), plan
        assert not any("TEMP B-TREE" in line or line.startswith(("SCAN adapter", "SCAN version")) for line in plan), (
            plan
        )
    else:
        assert any("Index" in line and "namespace" in line for line in plan), plan
        assert not any("Seq Scan on version " in line or "Seq Scan on adapter " in line for line in plan), plan
        assert not any("Sort Key" in line for line in plan), plan


def explained(world: World, cursor: str, search: dict[str, Any]) -> list[str]:
    """The plan of the statement that finds a page's adapters, as the database says it."""
    sent: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    event.listen(world.engine, "before_cursor_execute", keep)
    try:
        assert len(world.admin.adapters(limit=20, cursor=cursor, **search).items) == 20
    finally:
        event.remove(world.engine, "before_cursor_execute", keep)
    statement, parameters = next(item for item in sent if "LIMIT" in item[0] and "FROM adapter" in item[0])
    explain = "EXPLAIN QUERY PLAN " if world.engine.dialect.name == "sqlite" else "EXPLAIN "
    with world.engine.connect() as connection:
        return [str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters)]
