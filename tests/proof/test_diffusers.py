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


def test_diffusers_answers_as_recorded(tmp_path: Path) -> None:
    from tests.proof import diffusers_images  # imports torch

    recorded = json.loads(diffusers_images.RECORDED.read_text())[diffusers_images.NAME]
    rows = diffusers_images.run(tmp_path)
    assert {name: comparable(name, row) for name, row in rows.items()} == {
        n: comparable(n, row) for n, row in recorded.items()
    }


ROUNDING = 1e-5
"""Processors add in different orders; what acts is farther away by orders of magnitude."""
UNINITIALISED = {"sd-adapter-name", "flux-adapter-name", "sd-half-a-pair"}
"""What these compute with is whatever their memory held, zeros too."""


def comparable(name: str, row: dict[str, object]) -> tuple[object, ...]:
    """The answer's class (sets in its text have no order), and what was seen, where it does not depend on memory."""
    answer, modules = str(row["answer"]).partition(":")[0], row.get("modules")
    if name in UNINITIALISED:
        return answer, modules
    reference, base = row.get("from_reference"), row.get("from_base")
    return answer, modules, *(isinstance(far, float) and far < ROUNDING for far in (reference, base))
