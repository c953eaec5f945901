"""Every next step has words for a command line."""

from __future__ import annotations

import pytest

from registry.next_steps import NextStep, StepKind


@pytest.mark.parametrize("kind", StepKind)
def test_a_step_of_every_kind_is_worded_with_its_subject(kind: StepKind) -> None:
    text = NextStep(kind, "acme/support@3", "prod", ask=("dana",)).as_command()
    assert text
    assert not {"{", "}"} & set(text), text
