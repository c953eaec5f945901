"""A renamed adapter: attestations and events under its old name stay valid."""

from __future__ import annotations

import pytest

from registry.api.access import NamespaceSet
from registry.client import signing
from registry.client.audit import Audit
from registry.errors import Refused
from registry.evaluation.gates import Gate
from registry.tlog.notes import Verifier
from tests.harness import Harness


@pytest.fixture
def moved(harness: Harness) -> Harness:
    """`acme/support`, pushed by ci, was `acme/helper` and is `globex/helper`; nobody had asked for its attestation."""
    harness.add_base()
    harness.push("acme/support", by=harness.actor("push", name="ci"))
    harness.admin.rename("acme/support", "acme/helper")
    harness.admin.create_namespace("globex")
    harness.admin.rename("acme/helper", "globex/helper")
    return harness


def collected(harness: Harness, name: str) -> tuple[signing.Bundle, tuple[Verifier, ...]]:
    """What somebody sees who may pull from `globex` only, and the keys of the log."""
    reader = harness.actor("pull", namespaces=["globex"])
    collected_bundle = signing.collect(Audit(reader), reader.resolve(name))
    return collected_bundle, harness.app.state.audit_log.keys.verifiers


def test_a_renamed_version_still_proves_who_pushed_it_under_which_name(moved: Harness) -> None:
    collected_bundle, keys = collected(moved, "globex/helper@1")
    examined = signing.examine_bundle(signing.Bundle.parse(collected_bundle.to_bytes()), keys)
    assert [line.kind for line in examined.signed] == ["push"]
    assert examined.signed[0].ok, examined.signed[0].problem
    assert examined.signed[0].statement.endswith("as acme/support@1")
    assert (examined.problem, examined.seq) == ("", collected_bundle.attestations[0].seq)


def test_verdicts_under_the_new_name_are_attested(moved: Harness) -> None:
    moved.validate("globex/helper@1")
    collected_bundle, keys = collected(moved, "globex/helper@1")
    examined = signing.examine_bundle(collected_bundle, keys)
    assert [(line.kind, line.ok) for line in examined.signed] == [("push", True), ("verdict", True)]


def test_a_bundle_proves_only_names_that_the_log_has(moved: Harness) -> None:
    """Somebody's own version under the name of a trusted one: the name is the only thing that is not true."""
    moved.push("globex/evil", by=moved.actor("push", name="mallory"))
    evil, keys = collected(moved, "globex/evil@1")
    good, _ = collected(moved, "globex/helper@1")
    assert signing.examine_bundle(evil, keys).signed[0].ok
    for claim in ({"name": "globex/helper"}, {"name": "globex/helper", "arrival": good.arrival}):
        examined = signing.examine_bundle(evil.model_copy(update=claim), keys)
        assert not examined.signed[0].ok
        assert examined.problem
    assert good.arrival is not None
    forged = good.arrival.model_copy(update={"entry": good.arrival.entry.replace("acme/support", "globex/evil")})
    examined = signing.examine_bundle(evil.model_copy(update={"name": "globex/helper", "arrival": forged}), keys)
    assert not examined.signed[0].ok


def test_the_log_shows_a_rename_under_both_names_to_readers_of_each(moved: Harness) -> None:
    old, new = (Audit(moved.actor("pull", namespaces=[namespace])) for namespace in ("acme", "globex"))
    assert [(e.action, e.detail) for e in new.events(object="globex/helper")] == [
        ("adapter.rename_from", {"from": "acme/helper", "names": ["acme/support", "acme/helper"], "reason": ""})
    ]
    assert [e.action for e in old.events(object="acme/helper")] == ["adapter.rename_from", "adapter.rename"]


def test_an_approval_in_one_namespace_does_not_count_in_another(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    harness.admin.create_namespace("globex")
    harness.admin.set_gate("globex", "prod", Gate(approvals=1))
    harness.actor("promote", namespaces=["acme"], name="bob").approve("acme/support@1", "prod")
    harness.admin.rename("acme/support", "acme/helper")
    assert [a.identity for a in harness.admin.approvals("acme/helper@1").items] == ["token:bob"]
    harness.admin.rename("acme/helper", "globex/helper")
    assert harness.admin.approvals("globex/helper@1").items == []
    with pytest.raises(Refused):
        harness.admin.promote("globex/helper", "prod", "1", generation=0)


def test_the_proof_of_a_push_is_visible_only_with_the_version(moved: Harness) -> None:
    pushed = collected(moved, "globex/helper@1")[0].attestations[0].seq or 0
    outsider = moved.actor("pull", namespaces=["initech"])
    assert not list(Audit(outsider).events())[1:], "the base alone"
    with pytest.raises(Exception, match="there is no event"):
        Audit(outsider).proof(pushed)
    moved.admin.change_namespace("globex", NamespaceSet(public=True))
    assert Audit(outsider).proof(pushed).seq == pushed
