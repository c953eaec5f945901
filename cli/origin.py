"""What a version was made from, for `adapter show`: what was declared at its push, and what its README claims.

Invariants
- A claim of the README is marked as one.

Example
    data      tickets  s3://data/tickets.jsonl
"""

from __future__ import annotations

from cli import output
from registry.wire import VersionView

PARAMETERS_SHOWN = 12


def lines(version: VersionView) -> list[tuple[str, str]]:
    """Fields and their text; empty for what is not known."""
    declared, claims = version.provenance, version.facts.get("card") or {}
    data = [f"(its README) {name}" for name in claims.get("datasets", [])]
    found = [("data", data)]
    if declared is not None:
        for one in declared.datasets:
            where = " ".join(part for part in (one.uri, one.revision, one.split, one.digest) if part)
            data.insert(0, f"{one.name}  {output.faint(where)}" if one.name else where)
        parameters = [f"{name}={value}" for name, value in sorted(declared.parameters.items())]
        if more := len(parameters) - PARAMETERS_SHOWN:
            parameters[PARAMETERS_SHOWN:] = [f"and {more} more (--json has all)"] if more > 0 else []
        run, code = declared.run, declared.code
        found += [
            ("run", [f"{run.tool} {run.id}  {output.faint(run.url)}"] if run else []),
            ("code", [f"{code.repository}  {output.faint(code.commit)}"] if code else []),
            ("parameters", parameters),
        ]
    bases = [name for name in claims.get("bases", []) if name.rpartition("/")[2] != version.base.rpartition("/")[2]]
    found.append(("claims", [f"to be trained on {name} (its README)" for name in bases]))
    tools = {"peft": version.facts.get("peft_version") or "", **claims.get("tools", {})}
    if declared is not None or claims:
        found.append(("tools", [", ".join(f"{name} {number}" for name, number in sorted(tools.items()) if number)]))
    return [(field, "\n".join(told)) for field, told in found]
