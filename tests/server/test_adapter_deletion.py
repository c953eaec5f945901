"""Deleting an adapter: what needs it, what stays readable, and what a restore gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.api.transfer import PushRequest, PushResult
from registry.errors import Conflict, Invalid, NotFound, RegistryError
from registry.server.database import db
from registry.server.database.models.pushes import PushRow
from tests.bulk import commit_push, plan_push
from tests.harness import Harness, upload
from tests.maintenance import collect, findings

NAME = "acme/support"


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url, delete_grace_seconds=0) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def pushed(harness: Harness) -> PushResult:
    """Three versions: the first is `canary` and served, the second was deleted by itself."""
    first = harness.push(NAME)
    harness.push(NAME)
    harness.admin.delete_version(f"{NAME}@2", "wrong data")
    harness.push(NAME)
    harness.admin.promote(NAME, "canary", "1", generation=0)
    slot = SlotReport(adapter=NAME, digest=first.version.digest, served_name="s", state=SlotState.SERVING)
    harness.admin.report_node("gpu-1", "vllm", NodeReport(base="tiny-llama", alias="canary", slots=[slot]))
    return first


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(RegistryError) as caught:
        call()
    return caught.value.code


@pytest.mark.usefixtures("pushed")
def test_an_adapter_that_an_alias_or_a_node_needs_is_deleted_by_force_and_with_a_reason_only(harness: Harness) -> None:
    with pytest.raises(Conflict, match="cannot delete acme/support: there are 2 reasons") as caught:
        harness.admin.delete_adapter(NAME, "typo")
    assert caught.value.code == "ADAPTER_IN_USE"
    locations = [finding.location for finding in caught.value.findings]
    assert locations == ["acme/support:canary", "gpu-1"]
    assert caught.value.next_step == "pass --force with a --reason to delete it all the same"
    with pytest.raises(Invalid, match="a reason is required"):
        harness.admin.delete_adapter(NAME, force=True)
    assert harness.admin.resolve(f"{NAME}:canary").number == 1, "and nothing has changed"


@pytest.mark.usefixtures("pushed")
def test_a_deleted_adapter_serves_nothing_and_its_past_is_readable(harness: Harness) -> None:
    deleted = harness.admin.delete_adapter(NAME, "merchant left", force=True)
    assert (deleted.versions, [node.node for node in deleted.served_on]) == (2, ["gpu-1"])
    for ref in (f"{NAME}:canary", NAME):
        with pytest.raises(NotFound, match=r"'acme/support' was deleted on .* by token:admin: merchant left") as caught:
            harness.admin.resolve(ref)
        assert (caught.value.code, "--undo" in caught.value.next_step) == ("ADAPTER_DELETED", True)
    assert code_of(lambda: harness.admin.resolve(f"{NAME}@1")) == "VERSION_DELETED"
    assert code_of(lambda: harness.admin.adapter(NAME)) == "ADAPTER_DELETED"
    assert code_of(lambda: harness.push(NAME)) == "NAME_TOMBSTONED"
    assert [item.name for item in harness.admin.adapters().items] == []
    assert [v.number for v in harness.admin.versions(NAME, include_deleted=True).items] == [3, 2, 1]
    moves = harness.admin.history(NAME).moves
    assert [(move.alias, move.from_number, move.number) for move in moves[:2]] == [
        ("main", 3, None),
        ("canary", 1, None),
    ]
    assert findings(harness) == []


@pytest.mark.usefixtures("pushed")
def test_a_push_that_was_planned_before_brings_nothing_back(harness: Harness) -> None:
    """As if it had been planned while the deletion was being written, which ends all pushes that it sees."""
    files = harness.files()
    harness.push("globex/copy", files)  # so that nothing but the name is missing at the commit
    planned = plan_push(harness.admin, NAME, PushRequest(manifest=harness.manifest(files)))
    upload(harness.admin, planned, files)
    harness.admin.delete_adapter(NAME, "merchant left", force=True)
    with harness.session(write=True) as session:
        session.add(session.get_one(PushRow, planned.push_id).sqlmodel_update({"expires_at": db.now() + timedelta(1)}))
    assert code_of(lambda: commit_push(harness.admin, planned.push_id)) == "NAME_TOMBSTONED"
    assert [v.number for v in harness.admin.versions(NAME, include_deleted=True).items] == [3, 2, 1]


@pytest.mark.usefixtures("pushed")
def test_a_restore_gives_back_what_was_deleted_together(harness: Harness) -> None:
    assert harness.admin.undelete_adapter(NAME, "not deleted").versions == 0
    harness.admin.delete_adapter(NAME, "merchant left", force=True)
    assert code_of(lambda: harness.admin.undelete_version(f"{NAME}@3", "one of them")) == "ADAPTER_DELETED"
    assert harness.admin.undelete_adapter(NAME, "they came back").versions == 2
    assert [(a.alias, a.number) for a in harness.admin.aliases(NAME).items] == [("canary", 1), ("main", 3)]
    assert harness.admin.resolve(f"{NAME}:canary").number == 1
    assert [v.number for v in harness.admin.versions(NAME).items] == [3, 1], "the second was deleted before"
    assert [item.name for item in harness.admin.adapters().items] == [NAME]
    assert harness.push(NAME).version.number == 4
    assert findings(harness) == []


@pytest.mark.usefixtures("pushed")
def test_after_the_grace_time_files_are_gone_and_history_stays(harness: Harness) -> None:
    assert code_of(lambda: harness.admin.delete_namespace("acme")) == "NAMESPACE_IN_USE"
    harness.admin.delete_adapter(NAME, "merchant left", force=True)
    assert code_of(lambda: harness.admin.delete_namespace("acme")) == "NAMESPACE_IN_USE", "it can be restored"
    collect(harness)
    assert code_of(lambda: harness.admin.undelete_adapter(NAME, "too late")) == "ADAPTER_DELETED"
    assert len(harness.admin.history(NAME, alias="canary").moves) == 2
    assert harness.admin.namespace("acme").used_versions == 0
    assert findings(harness) == []
    assert harness.admin.delete_namespace("acme").name == "acme"
