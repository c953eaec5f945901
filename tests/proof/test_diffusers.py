"""The worker and diffusers about the cases of the tests and a share of all generated ones: `make test-engines`."""

from __future__ import annotations

import os

import pytest

from tests import fixtures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (fixtures.IMAGES_AVAILABLE and os.environ.get("PROOF_DIFFUSERS")), reason="make test-engines asks diffusers"
    ),
]


def test_the_worker_says_what_diffusers_did_with_each_file() -> None:
    from tests.proof import diffusers_grid  # imports torch

    count, different = diffusers_grid.disagreements()
    assert different == {}
    assert count > 300
