"""What a version was made from, for `adapter show`: what was declared at its push, what README and trainer's log claim.

Invariants
- A claim is marked as one, with the file that makes it.
"""

from __future__ import annotations

from typing import Any

from registry.api.catalog import VersionView
from registry.files import TRAINER_STATE

from . import output

PARAMETERS_SHOWN = 12


def lines(version: VersionView) -> list[tuple[str, str]]:
    """Fields and their text; empty for what is not known."""
    declared, claims = version.provenance, version.facts.get("card") or {}
    data = [f"(its README) {name}" for name in claims.get("datasets", [])]
    rows = [("data", data)]
    if declared is not None:
        for one in declared.datasets:
            where = " ".join(part for part in (one.uri, one.revision, one.split, one.digest) if part)
            data.insert(0, f"{one.name}  {output.faint(where)}" if one.name else where)
        parameters = [f"{name}={value}" for name, value in sorted(declared.parameters.items())]
        if more := len(parameters) - PARAMETERS_SHOWN:
            parameters[PARAMETERS_SHOWN:] = [f"and {more} more (--json has all)"] if more > 0 else []
        run, code = declared.run, declared.code
        rows += [
            ("run", [f"{run.tool} {run.id}  {output.faint(run.url)}"] if run else []),
            ("code", [f"{code.repository}  {output.faint(code.commit)}"] if code else []),
            ("parameters", parameters),
        ]
    bases = [name for name in claims.get("bases", []) if name.rpartition("/")[2] != version.base.rpartition("/")[2]]
    rows.append(("claims", [f"to be trained on {name} (its README)" for name in bases]))
    tools = {"peft": version.facts.get("peft_version") or "", **claims.get("tools", {})}
    if declared is not None or claims:
        rows.append(("tools", [", ".join(f"{name} {number}" for name, number in sorted(tools.items()) if number)]))
    rows.append(("training", _training(version.facts.get("trainer") or {})))
    return [(field, "\n".join(told)) for field, told in rows]


def _training(facts: dict[str, Any]) -> list[str]:
    """`60 of 100 steps, 3 epochs, batches of 8; loss 2.31 → 0.87, on evaluation 0.91; the best 0.85 at step 40`."""
    planned = f" of {facts['planned_steps']}" if facts.get("planned_steps", 0) > 0 else ""
    how = [
        f"{facts['steps']}{planned} steps" if "steps" in facts else "",
        f"{facts['epochs']:g} epochs" if "epochs" in facts else "",
        f"batches of {facts['batch_size']}" if "batch_size" in facts else "",
        f"{output.amount(facts['tokens'])} tokens" if facts.get("tokens") else "",
    ]
    losses = facts.get("losses") or []
    ends = [f"{loss:.4g}" for _, loss in (losses[0], losses[-1])] if len(losses) > 1 else []
    came = [
        f"loss {' → '.join(ends)}" if ends else "",
        f"on evaluation {facts['eval_loss']:.4g}" if "eval_loss" in facts else "",
    ]
    best = f"the best {facts['best_metric']:.4g}" if "best_metric" in facts else ""
    best += f" at step {facts['best_step']}" if best and "best_step" in facts else ""
    parts = [", ".join(part for part in group if part) for group in (how, came, [best])]
    line = "; ".join(part for part in parts if part)
    return [f"(its {TRAINER_STATE}) {line}"] if line else []
