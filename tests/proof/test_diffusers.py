"""Every image case is asked of diffusers again. Part of `make test-engines`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import fixtures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (fixtures.IMAGES_AVAILABLE and os.environ.get("PROOF_DIFFUSERS")), reason="make test-engines asks diffusers"
    ),
]


def test_diffusers_answers_as_it_is_recorded(tmp_path: Path) -> None:
    from tests.proof import diffusers_images  # imports torch

    recorded = json.loads(diffusers_images.RECORDED.read_text())[diffusers_images.NAME]
    asked = diffusers_images.run(tmp_path)
    assert {name: told(row) for name, row in asked.items()} == {name: told(row) for name, row in recorded.items()}


def told(row: dict[str, object]) -> tuple[object, ...]:
    """The answer's class (sets in its text have no order), and what was seen, where it does not depend on memory."""
    reference, base = row.get("from_reference"), row.get("from_base")
    acts = isinstance(reference, float) and reference < 1e-5
    return str(row["answer"]).partition(":")[0], row.get("modules"), acts, base == 0.0
