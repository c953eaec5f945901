"""Bytes that a push takes over by their digest are an event of the adapter that has them, as a download is."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.client.audit import Audit
from registry.client.transfer.push import push_folder
from registry.digest import Digest
from registry.names import AdapterName
from tests import samples
from tests.harness import Harness
from tests.hub.commits import Pusher, add_large

pytestmark = pytest.mark.security
OTHER = "evil/copy"


def copies(harness: Harness) -> list[tuple[str, str, object]]:
    events = Audit(harness.admin).events(action=["bytes.copy"])
    return [(event.actor, event.object, event.detail["to"]) for event in events]


def test_what_a_push_takes_over_from_another_adapter_is_told_there(harness: Harness) -> None:
    harness.add_base()
    files = harness.files()
    harness.push("foo/x", files)
    harness.push("foo/x", files)
    assert copies(harness) == [], "it has them itself"
    harness.push(OTHER, files)
    assert copies(harness) == [("token:admin", "foo/x@1", OTHER)]


@pytest.mark.parametrize("is_draft", [True, False])
def test_what_a_commit_of_the_hub_takes_over_is_told_there(harness: Harness, is_draft: bool) -> None:
    harness.add_base()
    files = harness.files()
    harness.push("foo/x", files)
    pusher = Pusher(harness, harness.secret, OTHER)
    assert pusher.create().status_code == 200
    weights = files[samples.WEIGHTS]
    lines = [add_large(samples.WEIGHTS, Digest.of(weights).hex, len(weights))]
    if not is_draft:
        lines += [add_large(samples.CONFIG, Digest.of(files[samples.CONFIG]).hex, len(files[samples.CONFIG]))]
    response = pusher.commit(*lines)
    assert response.status_code == 200, response.text
    assert copies(harness) == [("token:admin", "foo/x@1", OTHER)]


def test_a_small_file_that_the_client_has_sent_is_its_own(harness: Harness, tmp_path: Path) -> None:
    """Configurations are equal in many adapters."""
    harness.add_base()
    first, second = harness.files(seed=1), harness.files(seed=2)
    harness.push("foo/x", first)
    assert first[samples.CONFIG] == second[samples.CONFIG]
    push_folder(harness.admin, samples.write(second, tmp_path / "out"), AdapterName.parse(OTHER), base="tiny-llama")
    assert copies(harness) == []
