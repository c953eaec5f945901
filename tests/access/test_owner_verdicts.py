"""Verdicts that a namespace's own worker reports: marked, kept apart from the registry's, and never attested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry.api.jobs import JobSubmit
from registry.client.audit import Audit
from registry.errors import NotFound
from registry.findings import Finding
from registry.jobs import Kind
from tests.world import World

pytestmark = pytest.mark.security
REF = "acme/support@1"


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        world.add_base()
        world.push("acme/support")
        yield world


def smoke_verdicts(world: World) -> list[tuple[str, bool, str]]:
    verdicts = world.admin.version(REF).verdicts
    return [(str(v.outcome), v.by_owner, v.judged_by) for v in verdicts if v.check == "smoke"]


def attested_checks(world: World) -> list[str]:
    world.transport.settle()
    return [item.kind for item in Audit(world.admin).attestations(REF).items]


def test_an_owners_verdict_is_marked_and_not_attested(world: World) -> None:
    owner = world.actor("admin", namespaces=["acme"], name="acme-worker")
    world.validate(REF, by=owner)
    assert smoke_verdicts(world) == [("pass", True, "acme-worker")]
    resolved = world.admin.resolve("acme/support")
    assert resolved.verdicts["smoke (owner)"] == "pass"
    assert "smoke" not in resolved.verdicts
    assert world.admin.adapter("acme/support").verdicts["smoke (owner)"] == "pass"
    assert "verdict" not in attested_checks(world)
    [event] = Audit(world.admin).events(object=REF, action=["verdict.add"])
    assert event.detail["by_owner"] is True
    with pytest.raises(NotFound):
        world.admin.reference_logprobs(REF)


def test_the_registrys_verdict_and_the_owners_do_not_replace_each_other(world: World) -> None:
    fail = [Finding.of("error", "smoke.no_effect", "", "changes nothing")]
    world.validate(REF, fail)
    owner = world.actor("work", namespaces=["acme"], name="acme-worker")
    world.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=REF))
    world.validate(REF, by=owner)
    assert smoke_verdicts(world) == [("fail", False, "admin"), ("pass", True, "acme-worker")]
    verdicts = world.admin.resolve("acme/support").verdicts
    assert (verdicts["smoke"], verdicts["smoke (owner)"]) == ("fail", "pass")
    assert attested_checks(world).count("verdict") == 1
