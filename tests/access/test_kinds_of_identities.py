"""A person, a machine's token and the registry itself are three identities, whatever their names are."""

from __future__ import annotations

import pytest

from registry.api.access import TokenCreate
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.errors import Invalid, Unauthenticated
from registry.evaluation.gates import Gate
from registry.server.database.models import RoleRow, TokenRow
from tests.access.tenants import of_subject
from tests.harness import Harness

pytestmark = pytest.mark.security
ALICE = "alice@acme"


@pytest.fixture
def machine(harness: Harness) -> Registry:
    """The token of a machine that has the name of a person; she gets a role only later."""
    harness.add_base()
    harness.admin.create_namespace("acme", owner="owner@acme")
    machine = harness.actor("push", "promote", namespaces=["acme"], name=ALICE)
    harness.push("acme/support", by=machine)
    return machine


def person(harness: Harness) -> Registry:
    harness.admin.grant_role("acme", ALICE, "promoter")
    return harness.client(of_subject(harness, ALICE))


def test_a_person_approves_what_a_machine_of_her_name_has_pushed(harness: Harness, machine: Registry) -> None:
    harness.admin.set_gate("acme", "prod", Gate(approvals=1, approvers=(ALICE,), two_person=True))
    assert not machine.approve("acme/support@1", "prod").counts, "it pushed the version, and is not the approver"
    assert machine.check_gate("acme/support@1", "prod").missing
    alice = person(harness)
    assert alice.approve("acme/support@1", "prod").counts
    assert [(a.identity, a.counts) for a in alice.approvals("acme/support@1").items] == [
        (f"token:{ALICE}", False), (ALICE, True)
    ]  # fmt: skip
    assert alice.check_gate("acme/support@1", "prod").missing, "she would move it on her own approval"
    assert machine.promote("acme/support", "prod", "1", generation=0).moved_by == f"token:{ALICE}"


def test_the_log_tells_a_machine_from_a_person_of_its_name(harness: Harness, machine: Registry) -> None:
    alice = person(harness)
    machine.promote("acme/support", "canary", "1", generation=0)
    alice.promote("acme/support", "next", "1", generation=0)
    assert machine.version("acme/support@1").created_by == f"token:{ALICE}"
    assert (machine.whoami().actor, alice.whoami().actor) == (f"token:{ALICE}", ALICE)
    for actor, objects in ((ALICE, ["acme/support:next"]), (f"token:{ALICE}", ["acme/support:canary"])):
        events = [event for event in Audit(harness.admin).events(action=["alias.move"]) if event.actor == actor]
        assert [event.object for event in events if not event.object.endswith(":main")] == objects


@pytest.mark.parametrize("name", ["token:ci", "Token:ci", "publisher:repo", "registry", "owner", "exchange", "*"])
def test_no_subject_has_a_name_that_is_recorded_for_another_kind(harness: Harness, name: str) -> None:
    harness.admin.create_namespace("acme", owner="owner@acme")
    with pytest.raises(Invalid):
        harness.admin.grant_role("acme", name, "promoter")
    with pytest.raises(Invalid):
        harness.admin.create_namespace("globex", owner=name)
    with pytest.raises(Invalid):
        harness.admin.create_token(TokenCreate(name="x", scopes=["pull"], subject=name))
    _, secret = harness.issue("pull", namespaces=["acme"])
    with harness.session(write=True) as session:  # as a release could that did not refuse it
        token = session.get_one(TokenRow, harness.client(secret).whoami().token_id)
        session.add(token.sqlmodel_update({"subject": name}))
        session.add(RoleRow(namespace="acme", subject=name, role="owner", granted_at=token.created_at, granted_by="x"))
    with pytest.raises(Unauthenticated):
        harness.client(secret).whoami()


def test_a_token_belongs_to_a_person_and_not_to_a_group(harness: Harness) -> None:
    with pytest.raises(Invalid):
        harness.admin.create_token(TokenCreate(name="x", scopes=["pull"], subject="group:ml-platform"))
