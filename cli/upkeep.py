"""Upkeep, for administrators: `adapter gc`, `adapter fsck`, `adapter reindex`.

Invariants
- Each is a row of short requests; Ctrl-C between two of them loses nothing, and the same command goes on.
- `fsck` and `reindex` exit 70 when something is damaged or missing, and say what; what they mended is no damage.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import click

from registry.api.maintenance import FsckPage, FsckRequest, GcReport, GcRequest, ReindexRequest
from registry.client.registry import Registry
from registry.errors import Corrupt
from registry.evaluation.verdicts import Finding

from . import output, session

DAMAGED = output.EXIT_CODES[Corrupt]
FINDINGS_SHOWN = 50
MEGABYTE = 10**6
_WORDS = (
    ("pushes_expired", "pushes whose time was up"),
    ("blobs_marked", "unreferenced blobs"),
    ("blobs_deleted", "blobs deleted"),
    ("staged_deleted", "staged blobs deleted"),
    ("uploads_aborted", "unfinished uploads ended"),
    ("strays_deleted", "blobs without a row deleted"),
    ("strays_kept", "blobs without a row kept"),
    ("keys_refused", "keys that the store would not delete"),
    ("records_written", "records written"),
    ("pushes_forgotten", "ended pushes forgotten"),
    ("answers_forgotten", "old answers forgotten"),
)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted.")
@click.option("--grace", type=click.IntRange(0), metavar="SECONDS", help="How long to keep unreferenced blobs.")
@output.json_option
def gc(dry_run: bool, grace: int | None) -> None:
    """Delete unreferenced blobs, staged bytes and uploads. Safe beside pushes and pulls; run it daily."""
    report = GcReport()
    cursor = ""
    with session.registry() as registry:
        while True:
            report += registry.collect(GcRequest(dry_run=dry_run, grace_seconds=grace, cursor=cursor))
            cursor = report.next_cursor
            if not cursor:
                break
    output.answer(report, lambda: _print_gc(report))


def _print_gc(report: GcReport) -> None:
    counts = [(str(getattr(report, field)), what) for field, what in _WORDS if getattr(report, field)]
    if not counts:
        click.echo("There is nothing to collect.")
        return
    if report.dry_run:
        click.echo("This is what would be done:")
    output.facts(counts)
    if report.bytes_deleted:
        would = "would be" if report.dry_run else "are"
        click.echo(f"{output.size(report.bytes_deleted)} {would} free again.")
    if report.keys_refused:
        output.note("what the store would not delete: look at its disk and rights; the next `adapter gc` tries again")
    if report.strays_kept:
        output.note("blobs without a row: look at `adapter fsck`; after a restore run `adapter reindex` first")


@click.command()
@click.option("--deep", is_flag=True, help="Also read and hash every blob; mark or restore damaged ones.")
@click.option("--max-rate", type=click.FloatRange(0, min_open=True), metavar="MB/S", help="Maximum read rate.")
@click.option("--from", "cursor", default="", metavar="CURSOR", help="Resume an interrupted check at this cursor.")
@output.json_option
def fsck(deep: bool, max_rate: float | None, cursor: str) -> None:
    """Check that rows, bytes, counts, manifests and events agree. Exits 70 if something is damaged.

    Changes nothing, except that --deep marks damaged blobs and restores them from REGISTRY_SECOND_COPY.
    """
    whole = FsckPage()
    with session.registry() as registry:
        for page in _pages(registry, deep, cursor, max_rate):
            whole = _added(whole, page)
            if output.on_terminal():
                click.echo(f"\r{page.share:4.0%} checked, {len(whole.findings)} findings ", nl=False, err=True)
    if output.on_terminal():
        click.echo(err=True)
    output.answer(whole, lambda: _print_fsck(whole))
    _end(whole.findings)


def _pages(registry: Registry, deep: bool, cursor: str, max_rate: float | None) -> Iterable[FsckPage]:
    while True:
        started = time.monotonic()
        try:
            page = registry.fsck(FsckRequest(deep=deep, cursor=cursor))
        except KeyboardInterrupt:
            output.note(f"go on with: adapter fsck {'--deep ' if deep else ''}--from {cursor or 'adapters:0'}")
            raise
        yield page
        cursor = page.next_cursor
        if not cursor:
            return
        if max_rate:
            time.sleep(max(0.0, page.bytes_hashed / (max_rate * MEGABYTE) - (time.monotonic() - started)))


def _added(whole: FsckPage, page: FsckPage) -> FsckPage:
    checked = dict(whole.checked)
    for what, number in page.checked.items():
        checked[what] = checked.get(what, 0) + number
    return page.model_copy(
        update={
            "findings": [*whole.findings, *page.findings],
            "checked": checked,
            "bytes_hashed": whole.bytes_hashed + page.bytes_hashed,
        }
    )


def _print_fsck(whole: FsckPage) -> None:
    _print_findings(whole.findings)
    counts = [f"{number} {what.replace('_', ' ')}" for what, number in whole.checked.items() if number]
    hashed = f"; {output.size(whole.bytes_hashed)} hashed" if whole.bytes_hashed else ""
    click.echo(output.faint(f"checked: {', '.join(counts) or 'nothing: the registry is empty'}{hashed}"))
    if not whole.findings:
        click.echo(click.style("All is well.", fg="green"))


@click.command()
@click.option("--dry-run", is_flag=True, help="Only count what would be restored.")
@output.json_option
def reindex(dry_run: bool) -> None:
    """Rebuild lost rows of bases, versions, files, lineage and tombstones from the metadata backup in the bucket.

    Aliases, verdicts, jobs, tokens and the audit log are not in it: restore a database backup first. Missing backup
    records are written again.
    """
    totals: dict[str, Any] = {"dry_run": dry_run, "bases": 0, "versions": 0, "tombstones": 0, "withdrawals": 0}
    totals["records"] = 0
    findings: dict[tuple[str, str], Finding] = {}
    cursor = ""
    with session.registry() as registry:
        while True:
            page = registry.reindex(ReindexRequest(dry_run=dry_run, cursor=cursor))
            totals["bases"] += page.bases
            totals["versions"] += page.versions
            totals["tombstones"] += page.tombstones
            totals["withdrawals"] += page.withdrawals
            totals["records"] += page.records
            findings |= {(finding.code, finding.location): finding for finding in page.findings}
            cursor = page.next_cursor
            if not cursor:
                break
    findings_seen = list(findings.values())

    def text() -> None:
        _print_findings(findings_seen)
        would = "would come" if dry_run else "came"
        summary = f"{output.plural(totals['bases'], 'base')} and {output.plural(totals['versions'], 'version')}"
        click.echo(f"{summary} {would} back.")
        if totals["tombstones"]:
            names = output.plural(totals["tombstones"], "name")
            verb = "would be" if dry_run else "is" if totals["tombstones"] == 1 else "are"
            click.echo(f"{names} that ended {verb} never given again.")
        if totals["withdrawals"]:
            would = "Would be" if dry_run else "Now"
            changed = output.plural(totals["withdrawals"], "version")
            click.echo(f"{would} withdrawn, or released, as after the backup: {changed}.")
        if totals["records"]:
            would = "would be" if dry_run else "was" if totals["records"] == 1 else "were"
            click.echo(f"{output.plural(totals['records'], 'lost record')} {would} written again beside the blobs.")
        if totals["versions"] and not dry_run:
            output.note(
                "aliases, verdicts, signatures, rights and tokens are not in the records: see docs/operations.md"
            )

    output.answer({**totals, "findings": findings_seen}, text)
    _end(findings_seen)


def _print_findings(findings: list[Finding]) -> None:
    colors = {"error": "red", "warning": "yellow"}
    for finding in findings[:FINDINGS_SHOWN]:
        code = click.style(finding.code, fg=colors.get(finding.severity))
        click.echo(f"{code}  {finding.location}: {finding.message}")
    if len(findings) > FINDINGS_SHOWN:
        click.echo(f"and {len(findings) - FINDINGS_SHOWN} more; `--json` has all of them")


def _end(findings: list[Finding]) -> None:
    if any(finding.severity == "error" for finding in findings):
        click.get_current_context().exit(DAMAGED)
