"""`adapter gc`, `adapter fsck` and `adapter reindex`, for administrators.

Each is a series of short requests: Ctrl-C between two loses nothing. `fsck` and `reindex` exit 70 if something is
damaged or missing.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator

import click

from registry.api.maintenance import FsckPage, FsckRequest, GcReport, GcRequest, ReindexRequest
from registry.client import response_checks
from registry.client.registry import Registry
from registry.findings import Finding

from .console import arguments, output, session
from .console.options import Command
from .console.progress import on_terminal

FINDINGS_SHOWN = 50
RETIRED_SHOWN = 50
MEGABYTE = 10**6
_LABELS = (
    ("versions_retired", "version{s} deleted by retention"),
    ("pushes_expired", "expired push{es}"),
    ("blobs_marked", "unreferenced blob{s}"),
    ("blobs_deleted", "blob{s} deleted"),
    ("staged_deleted", "staged blob{s} deleted"),
    ("uploads_aborted", "unfinished upload{s} aborted"),
    ("orphans_deleted", "blob{s} without a row deleted"),
    ("orphans_kept", "blob{s} without a row kept"),
    ("keys_refused", "key{s} that the store refused to delete"),
    ("refs_written", "ref{s} written"),
    ("versions_measured", "version{s} measured"),
    ("pushes_deleted", "record{s} of ended pushes deleted"),
    ("responses_deleted", "stored response{s} deleted"),
    ("tokens_deleted", "expired token{s} of jobs and people deleted"),
    ("assertions_deleted", "record{s} of used identity tokens deleted"),
    ("sessions_deleted", "ended session{s} of web pages deleted"),
    ("deliveries_deleted", "record{s} of webhook deliveries deleted"),
    ("jobs_deleted", "job{s} that ended long ago deleted"),
    ("campaigns_deleted", "campaign{s} without jobs deleted"),
)
_SINGULAR, _PLURAL = {"s": "", "es": ""}, {"s": "s", "es": "es"}


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--grace", type=arguments.DURATION_OR_NONE, help="Keep unreferenced blobs so long: 0s, 12h, 7d …")
def gc(dry_run: bool, grace: int | None) -> None:
    """Delete versions by their retention rules, then unreferenced blobs, staged bytes and uploads.

    Safe to run during pushes and pulls; run it daily.
    """
    with session.registry() as registry:
        pages = response_checks.all_pages(
            lambda cursor: registry.collect(GcRequest(dry_run=dry_run, grace_seconds=grace, cursor=cursor))
        )
        report = sum(pages, GcReport())
    output.result(report, lambda: _print_gc(report))


def _print_gc(report: GcReport) -> None:
    numbers = [(getattr(report, field), label) for field, label in _LABELS if getattr(report, field)]
    counts = [(str(number), label.format_map(_SINGULAR if number == 1 else _PLURAL)) for number, label in numbers]
    if not counts:
        output.line("Nothing to collect.")
        return
    if report.dry_run:
        output.line("A run would do this:")
    output.facts(counts)
    if report.retired:
        output.line(f"Deleted by retention: {output.some(report.retired, RETIRED_SHOWN)}.")
    if report.bytes_deleted:
        output.line(f"{output.size(report.bytes_deleted)} {'would be' if report.dry_run else 'are'} free again.")
    if report.keys_refused:
        output.note("check the store's disk and permissions for the keys it refused; the next `adapter gc` tries again")
    if report.orphans_kept:
        output.note("blob{s} without a row: run `adapter fsck`, or after a restore `adapter reindex` first")


@click.command(cls=Command)
@click.option("--deep", is_flag=True, help="Also hash every blob; mark or restore damaged ones, and correct counters.")
@click.option("--max-rate", type=click.FloatRange(0, min_open=True), metavar="MB/S", help="Maximum read rate.")
@click.option("--after", "cursor", default="", metavar="CURSOR", help="Resume an interrupted check at this cursor.")
def fsck(deep: bool, max_rate: float | None, cursor: str) -> None:
    """Check that rows, bytes, counts, manifests and events agree. Exits 70 if something is damaged.

    Changes nothing, except that --deep corrects counters, and marks damaged blobs or restores them from
    REGISTRY_SECOND_COPY.
    """
    total = FsckPage()
    with session.registry() as registry:
        for page in _fsck_pages(registry, deep, cursor, max_rate):
            total = _added(total, page)
            if on_terminal():
                click.echo(f"\r{page.share:4.0%} checked, {len(total.findings)} findings ", nl=False, err=True)
    if on_terminal():
        click.echo(err=True)
    output.result(total, lambda: _print_fsck(total))
    _exit_by(total.findings)


def _fsck_pages(registry: Registry, deep: bool, cursor: str, max_rate: float | None) -> Iterator[FsckPage]:
    while True:
        started = time.monotonic()
        try:
            page = registry.fsck(FsckRequest(deep=deep, cursor=cursor))
        except KeyboardInterrupt:
            output.note(f"to resume: adapter fsck {'--deep ' if deep else ''}--after {cursor or 'adapters:0'}")
            raise
        yield page
        cursor = page.next_cursor
        if not cursor:
            return
        if max_rate:
            time.sleep(max(0.0, page.bytes_hashed / (max_rate * MEGABYTE) - (time.monotonic() - started)))


def _added(total: FsckPage, page: FsckPage) -> FsckPage:
    checked = Counter(total.checked)
    checked.update(page.checked)
    return page.model_copy(
        update={
            "findings": [*total.findings, *page.findings],
            "checked": dict(checked),
            "bytes_hashed": total.bytes_hashed + page.bytes_hashed,
        }
    )


def _print_fsck(total: FsckPage) -> None:
    _print_findings(total.findings)
    kinds = {kind: kind.replace("_", " ") for kind in total.checked}
    singular = {kind: re.sub(r"^(\w+?)(?:(?<=h)e)?s\b", r"\1", label) for kind, label in kinds.items()}
    counts = [f"{n} {(singular if n == 1 else kinds)[kind]}" for kind, n in total.checked.items() if n]
    hashed = f"; {output.size(total.bytes_hashed)} hashed" if total.bytes_hashed else ""
    output.line(output.faint(f"checked: {', '.join(counts) or 'nothing, the registry is empty'}{hashed}"))
    if not total.findings:
        output.line(output.styled("No problems found.", "green"))


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Only count what would be restored.")
def reindex(dry_run: bool) -> None:
    """Import the versions and bases that the store has and the database does not, as pushes.

    Aliases, roles, tokens, reserved names and the audit log come back with a backup of the database: run `adapter
    backup restore` first. What the store has lost of its refs and of the audit log is written again.
    """
    totals: Counter[str] = Counter(bases=0, versions=0, rewritten=0)
    findings: dict[tuple[str, str], Finding] = {}
    with session.registry() as registry:
        for page in response_checks.all_pages(
            lambda cursor: registry.reindex(ReindexRequest(dry_run=dry_run, cursor=cursor))
        ):
            totals.update(page.model_dump(include=set(totals)))
            findings |= {(finding.code, finding.location): finding for finding in page.findings}
    all_findings = list(findings.values())
    document = {"dry_run": dry_run, **totals, "findings": all_findings}
    output.result(document, lambda: _print_reindexed(totals, all_findings, dry_run=dry_run))
    _exit_by(all_findings)


def _print_reindexed(totals: Counter[str], findings: list[Finding], *, dry_run: bool) -> None:
    _print_findings(findings)
    counts = [output.plural(totals["bases"], "base"), output.plural(totals["versions"], "version")]
    output.line(f"{'Would import' if dry_run else 'Imported'} {' and '.join(counts)}.")
    if totals["rewritten"]:
        objects = output.plural(totals["rewritten"], "lost object")
        output.line(f"{'Would write' if dry_run else 'Wrote'} {objects} of the store again.")
    if totals["versions"] and not dry_run:
        output.note("aliases, roles and tokens are only in a backup of the database: see docs/operations.md")


def _print_findings(findings: list[Finding]) -> None:
    colors = {"error": "red", "warning": "yellow"}
    for finding in findings[:FINDINGS_SHOWN]:
        color = [colors[finding.severity]] if finding.severity in colors else []
        output.line(f"{output.styled(finding.code, *color)}  {finding.location}: {finding.message}")
    if len(findings) > FINDINGS_SHOWN:
        output.line(f"and {len(findings) - FINDINGS_SHOWN} more; --json has all")


def _exit_by(findings: list[Finding]) -> None:
    if any(finding.severity == "error" for finding in findings):
        output.exit_with(output.CORRUPT)
