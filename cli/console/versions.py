"""A version as lines of text: its method and targets, verdicts, and what prevents its use.

Example
    >>> method_line({"method": "LORA", "ranks": [8], "alpha": 16, "scales": [2]})
    'LoRA, rank 8, alpha 16, scale 2'
"""

from collections.abc import Sequence
from typing import Any

from registry import finding_catalog
from registry.adapters import methods
from registry.api.catalog import AdapterView, ServedOn, VersionView
from registry.api.jobs import JobPage
from registry.client import registries
from registry.client.core import Versions
from registry.client.transport.responses import parse_response
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.findings import Finding

from . import output

FINDINGS_SHOWN = 5
UPDATES_SHOWN = 12
SHORT_DIGEST = len("sha256:") + 12
"""Characters of a digest in tables."""


def print_warnings(version: VersionView) -> None:
    """Print what prevents the use of a version: damage, yank, quarantine."""
    if version.damaged:
        damaged = f"damaged in the store: {', '.join(version.damaged)}; push the same files again"
        output.line(output.styled(f"  {damaged}", "red"))
    if version.yanked_at:
        output.line(output.styled(f"  yanked {output.moment(version.yanked_at)}: {version.yank_reason}", "red"))
    if version.quarantined_at:
        since = output.moment(version.quarantined_at)
        output.line(output.styled(f"  in quarantine since {since}: {version.quarantine_reason}", "red"))


def state_of(version: VersionView) -> str:
    """Why the version is not in use: `erased`, `deleted`, `quarantined`, `yanked`, `damaged`; empty if it is."""
    states = {
        "erased": version.purged_at,
        "deleted": version.deleted_at,
        "quarantined": version.quarantined_at,
        "yanked": version.yanked_at,
        "damaged": version.damaged,
    }
    return next((state for state, holds in states.items() if holds), "")


def styled_state_of(version: VersionView) -> str:
    """The same in red, for people."""
    return output.styled(state_of(version), "red")


def outcome_of(view: AdapterView, check: str) -> str:
    """The outcome of a check in the summary of an adapter, in its color."""
    return output.outcome(view.verdicts.get(check, ""))


def tag_texts(tags: dict[str, str]) -> list[str]:
    """Each tag as it is typed: `key=value`, or `key` alone if its value is empty."""
    return [f"{key}={value}" if value else key for key, value in sorted(tags.items())]


def metadata_rows(view: AdapterView | VersionView) -> list[tuple[str, list[str]]]:
    """Description, tags and links for `output.facts`, each only if there is one."""
    rows = [
        ("description", view.description.splitlines()),
        ("tags", [" ".join(tag_texts(view.tags))] if view.tags else []),
        ("links", [f"{name}  {url}" for name, url in sorted(view.links.items())]),
    ]
    return [(label, lines) for label, lines in rows if lines]


def print_served_on(served_on: list[ServedOn]) -> None:
    """Print which nodes still have a version that was withdrawn."""
    for on in served_on:
        number = f" (@{on.number})" if on.number else ""
        output.line(f"  still {on.state} on {on.node}, engine {on.engine}, as {on.served_name}{number}")
    if served_on:
        output.line("  agents unload it within seconds: see `adapter fleet`")


def method_name(method: str) -> str:
    """The title of a method, such as LoRA for `LORA`."""
    return methods.find(method).title or method


def method_line(facts: dict[str, Any]) -> str:
    """`DoRA, rank 8, alpha 16, scale 2, 1.2 M parameters, F32`."""
    method = method_name(str(facts.get("method") or ""))
    if facts.get("use_dora"):
        method = "DoRA"
    if facts.get("use_rslora"):
        method = f"{method} (rank-stabilized)"
    ranks, scales = facts.get("ranks") or [], facts.get("scales") or []
    format_name = str(facts.get("format") or "peft")
    parts = [
        " ".join(part for part in (method, "" if format_name == "peft" else f"in {format_name} format") if part),
        str(facts.get("family") or ""),
        f"rank {_span(ranks)}" if ranks else "",
        f"alpha {facts['alpha']:g}" if ranks and isinstance(facts.get("alpha"), int | float) else "",
        f"scale {_span(scales)}" if scales else "",
        f"{output.amount(facts['parameters'])} parameters" if facts.get("parameters") else "",
        "/".join(facts.get("dtypes") or []),
    ]
    return ", ".join(part for part in parts if part)


def target_line(facts: dict[str, Any]) -> str:
    """What an adapter targets, replaces and trains, from the facts of a version."""
    targets, modules = facts.get("targets") or [], facts.get("modules") or 0
    line = ", ".join(targets)
    if modules:
        line += f" in {output.plural(modules, 'module')}"
    saved, tokens = facts.get("saved_modules") or [], facts.get("trained_tokens") or 0
    if saved:
        line += f"; replaces {', '.join(saved)}"
    if tokens:
        line += f"; trains {output.plural(tokens, 'token')}"
    return line


def update_lines(facts: dict[str, Any]) -> list[str]:
    """If ranks or scales differ, a line for each kind of module: `q_proj in layers 0-3: rank 16, alpha 16`."""
    updates = [u for u in facts.get("updates") or [] if u.get("path")]
    if len({(u.get("rank"), u.get("scale")) for u in updates}) < 2:
        return []
    lines = []
    for update in updates[:UPDATES_SHOWN]:
        layers = f" in layers {update['layers']}" if update.get("layers") else ""
        fields = [field for field in ("rank", "alpha", "scale") if update.get(field) is not None]
        lines.append(f"{update['path']}{layers}: " + ", ".join(f"{field} {update[field]:g}" for field in fields))
    more = len(updates) - UPDATES_SHOWN
    return lines + ([output.faint(f"and {more} more (--json has all)")] if more > 0 else [])


def _span(numbers: list[float | None]) -> str:
    finite = [number for number in numbers if number is not None]  # an alpha of NaN is stored as null
    if not finite:
        return "unknown"
    low, high = min(finite), max(finite)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def verdict_lines(verdicts: list[Verdict], ref: str = "REF", job_id: str = "") -> list[str]:
    """The newest verdict of each check with its findings. A missing smoke test is listed, with the job of `job_id`."""
    newest = {(verdict.check, verdict.profile, verdict.by_owner): verdict for verdict in verdicts}
    order = list(Check)
    lines = []
    for (check, engine, _), verdict in sorted(newest.items(), key=lambda item: (order.index(item[0][0]), item[0][1:])):
        line = f"{check:<8}{output.outcome(verdict.outcome)}"
        line += f"  {engine}" if engine else ""
        line += "  (by its owner)" if verdict.by_owner else ""
        lines.append(line + (f"  {verdict.summary}" if verdict.summary else ""))
        findings = [f for f in verdict.findings if f.severity != "info" and f.message not in verdict.summary]
        lines += [f"      - {finding_line(f)}" for f in findings[:FINDINGS_SHOWN]]
        if len(findings) > FINDINGS_SHOWN:
            lines.append(f"      - and {len(findings) - FINDINGS_SHOWN} more (--json has all)")
        if verdict.outcome is not Outcome.PASS:
            lines += [output.faint(f"      what to do: {fix}") for fix in fixes(verdict.findings)[:FINDINGS_SHOWN]]
    checks = {check for check, _, _ in newest}
    if Check.COMPAT in checks and Check.WEIGHTS not in checks:
        lines.append(
            f"{'weights':<8}{output.styled('pending', 'yellow')}  {output.faint('large weights are read later')}"
        )
    if Check.SMOKE not in checks:
        failed = {check for (check, _, _), verdict in newest.items() if verdict.outcome is Outcome.FAIL}
        is_registered = all(f.code != "compat.base_unregistered" for v in newest.values() for f in v.findings)
        step = f": adapter smoke-test {ref} --wait"
        if registries.target().embedded:
            request = f": adapter smoke-test {ref}, then adapter worker --once"
            step = ", its job is queued: adapter worker --once" if job_id else request
        elif job_id:
            step = f", its job is queued or runs: adapter job show {job_id}"
        reason = f"not tested yet{step}" if is_registered else "not tested: no base to load"
        if Check.COMPAT in failed or Check.WEIGHTS in failed:
            reason = "not tested: it does not fit" if Check.COMPAT in failed else "not tested: its weights are broken"
        lines.append(f"{'smoke':<8}{output.faint(reason)}")
    return lines


def fixes(findings: Sequence[Finding]) -> list[str]:
    """What to do about these findings, each once, errors first."""
    worst_first = sorted(findings, key=lambda finding: ("error", "unknown", "warning", "info").index(finding.severity))
    texts = (finding_catalog.fix_of(finding.code) for finding in worst_first if finding.severity != "info")
    return list(dict.fromkeys(filter(None, texts)))


def finding_line(finding: Finding) -> str:
    """The finding's message, after its location unless the message names it."""
    if not finding.location or finding.location in finding.message:
        return finding.message
    return f"{finding.location}: {finding.message}"


def open_test(registry: Versions, version: VersionView) -> str:
    """The id of the job that will test the version, if there is one."""
    if not output.is_text() or any(v.check is Check.SMOKE for v in version.verdicts):
        return ""
    query = {"kind": "smoke-test", "ref": f"{version.name}@{version.digest}", "limit": 1}
    response = registry.connection.send("GET", "/jobs", query=query)
    jobs = parse_response(response, JobPage).items
    return next((job.id for job in jobs if job.finished_at is None), "")
