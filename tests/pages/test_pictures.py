"""What pages draw and offer for a version: the loss, the trend of verdicts, lines to copy, lineage as a file."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from registry.lineage import diagrams
from registry.server.pages.adapters import verdict_trend
from registry.server.pages.versions import loss_curve
from tests.harness import Harness
from tests.pages.conftest import Browser


def test_the_loss_of_the_trainers_log_is_drawn_in_its_frame() -> None:
    curve = loss_curve({"trainer": {"losses": [[0, 2.0], [10, 1.0], [20, 0.5]]}})
    assert curve is not None
    assert (curve.points, curve.first, curve.last, curve.step) == ("0.0,0.0 120.0,32.0 240.0,48.0", 2.0, 0.5, 20)
    flat = loss_curve({"trainer": {"losses": [[5, 1.0], [5, 1.0]]}})
    assert flat is not None
    assert flat.points == "0.0,0.0 0.0,0.0"
    without: list[dict[str, Any]] = [{}, {"trainer": {}}, {"trainer": {"losses": [[0, 1.0]]}}]
    assert [loss_curve(facts) for facts in without] == [None] * 3


def test_an_adapter_shows_its_trend_and_a_version_its_loss(registry: Harness, signed_in: Browser) -> None:
    log = [{"step": step, "loss": 2.0 - step / 10} for step in range(4)]
    state = json.dumps({"global_step": 3, "log_history": log}).encode()
    for _ in range(2):
        registry.push("acme/drawn", registry.files() | {"trainer_state.json": state})
    page = signed_in.get("/adapters/acme/drawn").text
    assert len(re.findall(r'<rect width="10" y="0.0" height="40.0"/>', page)) == 2, "two versions of one size"
    assert "--lora-paths acme-drawn=./drawn" in page
    after_the_last = signed_in.get("/adapters/acme/drawn?cursor=1")
    assert (after_the_last.status_code, "<rect" in after_the_last.text) == (200, False)
    assert 'aria-label="Training loss from 2 to 1.7 at step 3"' in signed_in.get("/adapters/acme/drawn/versions/1").text
    versions = [registry.admin.version(f"acme/drawn@{number}") for number in (2, 1)]
    assert verdict_trend(versions)["compat"] == [(1, "pass"), (2, "pass")]


@pytest.mark.security
def test_lineage_is_a_file_to_download_for_those_who_see_the_version(
    registry: Harness, browser: Browser, signed_in: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert browser is signed_in
    registry.push("acme/exported")
    path = "/adapters/acme/exported/versions/1/lineage"
    for ending, start in (("svg", "<svg"), ("mermaid", "flowchart"), ("dot", "digraph"), ("json", "{")):
        response = signed_in.get(f"{path}.{ending}")
        assert response.text.startswith(start), ending
        assert response.headers["content-disposition"] == f'attachment; filename="acme-exported-1.{ending}"'
        assert "default-src 'none'" in response.headers["content-security-policy"]
    assert signed_in.get(f"{path}.html").status_code == 404
    with Browser(registry) as anonymous:
        assert anonymous.get(f"{path}.svg").status_code == 404
    monkeypatch.setattr(diagrams, "PIECES_LIMIT", 0)
    assert signed_in.get(f"{path}.svg").status_code == 413
    assert signed_in.get(f"{path}.dot").status_code == 200
