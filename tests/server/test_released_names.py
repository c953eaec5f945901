"""Names that are used again: a deleted adapter's that nobody else pulled, and the former name of a renamed one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.errors import Conflict, NotFound
from registry.events import EventType
from tests.harness import Harness
from tests.maintenance import findings

NAME = "acme/suport"


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url) as harness:
        harness.add_base()
        yield harness


def read(harness: Harness, reader: Registry) -> None:
    with reader.read(reader.resolve(NAME).files[0]) as chunks:
        list(chunks)
    harness.app.state.audit_log.step()


def test_an_owner_releases_a_name_that_nobody_else_pulled(harness: Harness) -> None:
    harness.push(NAME)
    harness.admin.promote(NAME, "canary", "1", generation=0)
    with pytest.raises(Conflict, match="'acme/suport' is not deleted"):
        harness.admin.release_name(NAME, "a typo")
    read(harness, harness.admin)
    harness.admin.delete_adapter(NAME, "a typo", force=True)
    harness.admin.release_name(NAME, "a typo")
    harness.admin.release_name(NAME, "a typo")
    assert len(list(Audit(harness.admin).events(object=NAME, action=[EventType.ADAPTER_RELEASE]))) == 1
    again = harness.push(NAME)
    assert (again.version.number, again.main_number) == (2, 2), "a number never means other bytes"
    assert harness.admin.promote(NAME, "canary", "2", generation=2).generation == 3
    assert harness.admin.undelete_adapter(NAME, "too late").versions == 0
    assert [v.number for v in harness.admin.versions(NAME, include_deleted=True).items] == [2, 1]
    assert findings(harness) == []


def test_a_name_that_somebody_pulled_is_not_released(harness: Harness) -> None:
    harness.push(NAME)
    read(harness, harness.actor("pull", name="bob"))
    harness.admin.delete_adapter(NAME)
    with pytest.raises(Conflict, match=r"token:bob had its bytes on 2.*UTC") as caught:
        harness.admin.release_name(NAME, "a typo")
    assert caught.value.code == "ADAPTER_IN_USE"
    with pytest.raises(Conflict, match="never used again"):
        harness.push(NAME)


def test_an_adapter_is_renamed_back_and_its_other_name_leads_to_it(harness: Harness) -> None:
    harness.push(NAME)
    for name, to in ((NAME, "acme/help"), ("acme/help", NAME), (NAME, "acme/help"), ("acme/help", NAME)):
        harness.admin.rename(name, to, "a try")
    with pytest.raises(NotFound, match=f"was renamed to '{NAME}'"):
        harness.admin.resolve("acme/help")
    with pytest.raises(Conflict, match="never used again"):
        harness.push("acme/help")
    assert harness.admin.resolve(NAME).number == 1
    renames = list(Audit(harness.admin).events(object="acme/help", action=[EventType.ADAPTER_RENAME]))
    assert [event.detail["reason"] for event in renames] == ["a try", "a try"]
    assert findings(harness) == []
