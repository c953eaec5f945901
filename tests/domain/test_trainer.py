"""The trainer's own log, as transformers 5 wrote it, and as nobody should: numbers are claims, texts are never kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.adapters import trainer

WRITTEN = Path(__file__).with_name("trainer_state.json").read_bytes()
"""Of a real training of twelve steps; its path and its trial's name were written in afterwards."""


def test_a_trainers_log_claims_steps_losses_and_the_best_and_no_text_of_it_is_kept() -> None:
    facts = trainer.read(WRITTEN).facts
    assert facts == {
        "steps": 12, "planned_steps": 12, "epochs": 1.5, "planned_epochs": 2, "batch_size": 4, "tokens": 0,
        "flos": 496927000.0, "best_metric": 6.26215, "best_step": 12, "eval_loss": 6.26215,
        "learning_rate": 0.000833333, "grad_norm": 0.00397517,
        "losses": [[2, 6.24413], [4, 6.24664], [6, 6.25787], [8, 6.28328], [10, 6.24818], [12, 6.26867]],
    }  # fmt: skip
    assert b"customer-x" in WRITTEN
    assert "customer-x" not in json.dumps(facts)


def test_a_long_log_is_summarized_by_some_losses_with_both_ends() -> None:
    log = [{"step": step, "loss": 4.0 / step} for step in range(1, 5001)]
    points = trainer.read(json.dumps({"log_history": log}).encode()).losses
    assert (len(points), points[0], points[-1]) == (trainer.POINTS, (1, 4.0), (5000, 0.0008))
    assert [step for step, _ in points] == sorted({step for step, _ in points})


WRONG = [
    b"", b"\xff", b"[1]", b"3", b"{",
    b"[" * 8_000_000,
    b'{"a":' * 100_000,
    b'{"global_step": ' + b"9" * 50_000 + b"}",
    b'{"log_history": [' + b"{}," * 500_000 + b"{}]}",
    b" " * (trainer.READ_LIMIT_BYTES + 1) + b'{"global_step": 1}',
    b'{"epoch": NaN, "global_step": 1e999, "best_metric": true, "max_steps": "6", "total_flos": 1e300}',
    b'{"log_history": [{"step": 1, "loss": NaN}, {"step": 2.5, "loss": 1}, {"loss": 1}, 7, {"step": 3, "loss": []}]}',
    b'{"log_history": {"step": 1, "loss": 2}}',
]  # fmt: skip


@pytest.mark.parametrize("data", WRONG, ids=lambda data: f"{len(data)}-bytes")
def test_what_cannot_be_read_or_is_no_number_claims_nothing(data: bytes) -> None:
    assert trainer.read(data).facts == {}
