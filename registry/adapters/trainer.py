"""`TrainerState`: what the Trainer's log (trainer_state.json) claims: steps, epochs, losses, the best metric.

Claims decide nothing; what cannot be read is left out. Only the numbers of the fields named here are taken: texts, such
as paths of checkpoints, are never kept.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from registry.strict import json as strict_json

READ_LIMIT_BYTES = 8 * 2**20
VALUES_LIMIT = 1_000_000
"""Commas and brackets, before anything is parsed: a value takes some hundred bytes of memory at most."""
DEPTH_LIMIT = 16
POINTS = 24
DIGITS = 6
NUMBER_LIMIT = 1e24

_FIELDS = {
    "global_step": "steps",
    "max_steps": "planned_steps",
    "epoch": "epochs",
    "num_train_epochs": "planned_epochs",
    "train_batch_size": "batch_size",
    "num_input_tokens_seen": "tokens",
    "total_flos": "flos",
    "best_metric": "best_metric",
    "best_global_step": "best_step",
}
"""The Trainer's fields → what they are called here."""
_OF_LOG = {
    "eval_loss": "eval_loss",
    "train_loss": "train_loss",
    "train_runtime": "seconds",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}
"""Of the log's entries → the last number of each."""
Number = int | float


@dataclass(frozen=True, slots=True)
class TrainerState:
    numbers: Mapping[str, Number] = field(default_factory=dict)
    losses: tuple[tuple[int, Number], ...] = ()
    """(step, training loss), in the order of the log."""

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON, without what is not claimed."""
        losses = {"losses": [list(point) for point in self.losses]} if self.losses else {}
        return {**self.numbers, **losses}


def read(data: bytes) -> TrainerState:
    """The claims of a trainer's log. Never raises."""
    state = _parsed(data)
    entries = [entry for entry in _listed(state.get("log_history")) if isinstance(entry, dict)]
    numbers = {ours: number for theirs, ours in _FIELDS.items() if (number := _number(state.get(theirs))) is not None}
    for theirs, ours in _OF_LOG.items():
        values = [number for entry in entries if (number := _number(entry.get(theirs))) is not None]
        if values:
            numbers[ours] = values[-1]
    return TrainerState(numbers, tuple(_sample(list(_losses(entries)))))


def _parsed(data: bytes) -> Mapping[str, Any]:
    if len(data) > READ_LIMIT_BYTES or strict_json.has_more_values(data, VALUES_LIMIT):
        return {}
    if strict_json.depth_of(data, stop_at=DEPTH_LIMIT) > DEPTH_LIMIT:
        return {}
    try:
        document = json.loads(data, parse_constant=lambda _word: None)  # the Trainer writes NaN as it comes
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _losses(entries: list[dict[str, Any]]) -> Iterator[tuple[int, Number]]:
    for entry in entries:
        step, loss = _number(entry.get("step")), _number(entry.get("loss"))
        if isinstance(step, int) and loss is not None:
            yield step, loss


def _sample(points: list[tuple[int, Number]]) -> list[tuple[int, Number]]:
    """At most `POINTS` of them, evenly, both ends among them."""
    if len(points) <= POINTS:
        return points
    return [points[round(at * (len(points) - 1) / (POINTS - 1))] for at in range(POINTS)]


def _number(value: object) -> Number | None:
    """A finite number of a sane size, rounded; None for anything else, for true and false too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < NUMBER_LIMIT:
        return None
    if isinstance(value, int):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
