"""Search: every filter, pages by key, and that a later page costs what the first does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import insert
from sqlmodel import select

from registry.api.catalog import AdapterPage, MetadataChange
from registry.client.response_checks import all_pages
from registry.errors import Invalid
from registry.server.catalog.search import adapters, candidates
from registry.server.database.models import AdapterRow, AliasRow, VersionAttributeRow, VersionMetadataRow, VersionRow
from tests import many_adapters, samples
from tests.harness import Harness
from tests.identities import make_identity, nudged, values

VLLM = "vllm==0.33.0"


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url, engines=VLLM) as harness:
        harness.add_base()
        harness.add_base(samples.gpt2())
        yield harness


def found(harness: Harness, **search: Any) -> list[str]:
    return [item.name for item in harness.admin.adapters(**search).items]


def test_each_filter_finds_what_it_names_and_nothing_else(harness: Harness) -> None:
    harness.push("acme/attention", harness.files(rank=4, targets=("q_proj", "v_proj")))
    harness.push("acme/everything", harness.files(rank=64, targets=("q_proj", "v_proj", "down_proj")))
    fused = samples.lora(samples.gpt2(), seed=9, targets=("c_attn",))
    harness.push("lab/conv1d", fused, base="tiny-gpt2", by=harness.actor("push", name="lea"))
    assert found(harness, base="tiny-gpt2") == ["lab/conv1d"]
    assert found(harness, owner="token:lea") == ["lab/conv1d"]
    assert found(harness, prefix="a") == found(harness, prefix="acme/") == ["acme/attention", "acme/everything"]
    assert found(harness, prefix="Acme/e") == ["acme/everything"]
    assert found(harness, prefix="cme/e") == found(harness, prefix="acme/_") == found(harness, prefix="%") == []
    assert found(harness, namespace="acme", method="lora") == ["acme/attention", "acme/everything"]
    assert found(harness, rank_min=8, namespace="acme") == ["acme/everything"]
    assert found(harness, rank_max=4, namespace="acme") == ["acme/attention"]
    assert found(harness, rank_min=4, rank_max=64, text="every") == ["acme/everything"]
    assert found(harness, target=["q_proj"]) == ["acme/attention", "acme/everything"]
    assert found(harness, target=["q_proj", "down_proj"]) == ["acme/everything"]
    assert found(harness, target=["proj"]) == []
    assert found(harness, target=["%"]) == []
    assert found(harness, format="peft", namespace="lab") == ["lab/conv1d"]
    assert found(harness, format="kohya") == []
    assert found(harness, engine=VLLM, namespace="acme") == ["acme/attention"]
    assert found(harness, engine=VLLM, outcome="fail", namespace="acme") == ["acme/everything"]


def test_search_by_base_match_finds_adapters_of_related_bases(harness: Harness) -> None:
    weights = values()
    identities = {
        "tiny-llama": make_identity(weights), "cast": make_identity(nudged(weights, 0.0005), dtype="BF16"),
        "tuned": make_identity(nudged(weights, 0.05)), "outsider": make_identity(values(1)),
    }  # fmt: skip
    for name, identity in identities.items():
        if name != "tiny-llama":
            harness.add_base(samples.llama(name))
        harness.admin.identify_base(name, identity)
        harness.push(f"acme/for-{name}", harness.files(), base=name)
    assert found(harness, base="tiny-llama") == ["acme/for-tiny-llama"]
    assert found(harness, base="tiny-llama", base_match="exact") == ["acme/for-tiny-llama"]
    assert found(harness, base="tiny-llama", base_match="other-dtype") == ["acme/for-cast", "acme/for-tiny-llama"]
    everything = ["acme/for-cast", "acme/for-tiny-llama", "acme/for-tuned"]
    assert found(harness, base="tiny-llama", base_match="descendant") == everything
    assert found(harness, base="cast", base_match="descendant") == everything
    with pytest.raises(Invalid, match="base_match: needs `base`"):
        found(harness, base_match="exact")


def test_annotations_are_found_by_key_and_by_value_and_belong_to_the_newest_version(harness: Harness) -> None:
    harness.push("acme/a", annotations={"team": "search", "tier": "gold"})
    harness.push("acme/b", annotations={"team": "support"})
    harness.push("acme/c", annotations={"report": "x" * 1000})
    assert found(harness, annotation=["team"]) == ["acme/a", "acme/b"]
    assert found(harness, annotation=["team=search"]) == ["acme/a"]
    assert found(harness, annotation=["team", "tier=gold"]) == ["acme/a"]
    assert found(harness, annotation=["team=search", "tier=silver"]) == []
    assert found(harness, annotation=["report"]) == []  # too long for an index; it stays in the manifest
    harness.push("acme/a", annotations={"tier": "gold"})
    assert found(harness, annotation=["team"]) == ["acme/b"]


def test_search_by_an_engine_without_stored_verdicts_is_an_error(harness: Harness) -> None:
    with pytest.raises(Invalid, match=r"stores no verdicts of .*, only of: vllm"):
        harness.admin.adapters(engine="vllm==0.32.0")


def test_only_the_newest_version_and_its_newest_verdict_count(harness: Harness) -> None:
    harness.push("acme/support", harness.files(rank=64))
    assert found(harness, engine=VLLM) == []
    harness.push("acme/support", harness.files(rank=8))
    assert found(harness, engine=VLLM) == ["acme/support"]
    assert found(harness, rank_min=64) == []


def test_an_invalid_rank_is_a_bad_request(harness: Harness) -> None:
    with pytest.raises(Invalid) as caught:
        harness.admin.adapters(rank_min=-1)
    assert caught.value.code == "REQUEST_INVALID"


def insert_adapters(harness: Harness, count: int) -> None:
    """Adapters like the first one, as rows alone."""
    harness.push("acme/a", annotations={"team": "search"})
    harness.admin.describe("acme/a@1", MetadataChange(tags={"team": "search"}))
    with harness.session(write=True) as session:
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
        for table in (VersionAttributeRow, VersionMetadataRow):
            carried = [tag.model_dump() for tag in session.exec(select(table)).all()]
            tags = [tag | {"version_id": row["id"]} for row in rows for tag in carried]
            session.connection().execute(insert(table), tags)


def counted(harness: Harness, cursor: str) -> tuple[AdapterPage, int]:
    """A page and its statements: the fewest of some tries, since what follows a push may still be at work beside it."""
    counts = []
    for _ in range(8):
        with harness.statements() as sent:
            page = harness.admin.adapters(limit=20, cursor=cursor)
        counts.append(len(sent))
    return page, min(counts)


def test_a_later_page_continues_and_costs_no_more_statements(harness: Harness) -> None:
    insert_adapters(harness, 300)
    first, sent = counted(harness, "")
    assert first.next_cursor == "acme/b00018"
    items, cursor = list(first.items), first.next_cursor
    while cursor:
        page, later = counted(harness, cursor)
        items, cursor = items + page.items, page.next_cursor
        assert later <= sent
    assert [item.name for item in items] == ["acme/a", *(f"acme/b{i:05d}" for i in range(300))]


@pytest.mark.parametrize("candidates_limit", [0, 1000], ids=["windows", "candidates"])
def test_pages_of_filters_that_match_many_and_together_few_hold_the_same(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, candidates_limit: int
) -> None:
    many_adapters.fill(harness, 60)
    searches: tuple[dict[str, Any], ...] = (
        {"annotation": ["parity=odd"], "rank_max": 8}, {"annotation": ["parity=odd"], "rank_min": 64},
        {"base": "tiny-llama", "text": "kind3", "prefix": "acme/shop-00005"}, {"text": "shop", "rank_max": 32},
    )  # fmt: skip
    few = [sorted(found(harness, **search)) for search in searches]
    assert [len(names) for names in few] == [1, 14, 2, 44]
    monkeypatch.setattr(candidates, "CANDIDATES_LIMIT", 1)
    monkeypatch.setattr(candidates, "MORE_CANDIDATES_LIMIT", candidates_limit)
    monkeypatch.setattr(adapters, "WINDOW", 3)
    monkeypatch.setattr(adapters, "WIDE_WINDOW", 7)
    other_tenant = harness.actor("pull", namespaces=["other"])
    for search, names in zip(searches, few, strict=True):
        pages = list(all_pages(lambda cursor, s=search: harness.admin.adapters(limit=4, cursor=cursor, **s)))  # type: ignore[misc]
        assert [item.name for page in pages for item in page.items] == names
        assert all(len(page.items) <= 4 for page in pages)
        if names == few[0]:
            assert len(pages) == (1 if candidates_limit else 9), "a page looks at 7 adapters"
        assert other_tenant.adapters(**search) == AdapterPage(items=[])


def test_a_count_that_would_look_at_too_many_adapters_is_missing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_adapters.fill(harness, 30)
    monkeypatch.setattr(candidates, "CANDIDATES_LIMIT", 5)
    monkeypatch.setattr(adapters, "WIDE_WINDOW", 30)

    def count(**search: Any) -> int | None:
        return harness.admin.adapters(limit=1, count=True, **search).total

    assert (count(), count(text="shop"), count(text="shop 000003")) == (30, 28, 1)
    monkeypatch.setattr(adapters, "WIDE_WINDOW", 29)
    assert (count(), count(text="shop"), count(text="shop 000003")) == (None, None, 1)
    assert count(prefix="acme/shop-00001") == 10
