"""The page of a version: verdicts, engines, norms, smoke test, files, provenance, signatures; and its images."""

import base64
import binascii
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from sqlmodel import Session

from registry.adapters import module_grid
from registry.adapters.module_grid import Grid, Join
from registry.api.aliases import WithdrawRequest
from registry.api.catalog import VersionView
from registry.api.evaluation import NormsView
from registry.digest import Digest
from registry.engines import profile, rulebook
from registry.errors import Invalid, NotFound, RegistryError, Unavailable
from registry.evaluation.golden import Golden, read_golden
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.names import AdapterName
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import files, versions
from registry.server.catalog.conclusions import conclude_view
from registry.server.database import db
from registry.server.evaluation import engine_compat, engine_profiles, weights
from registry.server.http import dependencies as deps
from registry.server.http import routing
from registry.server.http.request_actor import record_read
from registry.server.http.request_body import limit_body
from registry.server.pages.adapters import read_readme, usage_examples
from registry.server.pages.rendering import (
    PRIVATE,
    SECURITY_HEADERS,
    adapter_path,
    create_router,
    redirect,
    render,
    sparkline_points,
)
from registry.server.pages.sessions.forms import FORM_BYTES, may_change, read_fields, to_request
from registry.server.pages.sessions.visitors import VisitorDep, record_page_read
from registry.server.promotion import attestations, withdraw
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, attachment, key_of
from registry.versions.files import GOLDEN
from registry.versions.manifest import Descriptor

router = create_router()
REPORT_LIMIT_BYTES = 8 * 2**20
CELLS_LIMIT = 1000
"""Cells of a heat map. A larger grid is shown as one number a layer."""
HEAT_LEVELS = 9
OUTLIER = 3
"""A module stands out whose number is so many times the median of all."""
OUTLIERS_SHOWN = 5
ANSWERS_SHOWN = 12
PNG = b"\x89PNG\r\n\x1a\n"


@router.get(deps.VERSION)
def show_version(
    request: Request, session: deps.SessionDep, visitor: VisitorDep, settings: deps.SettingsDep, name: deps.NameDep,
    selector: deps.SelectorDep, blobs: deps.QuickBlobsDep,
) -> Response:  # fmt: skip
    """Show one version."""
    actor = visitor.actor
    version = versions.show(session, actor, name, selector)
    norms = weights.show_norms(session, actor, name, version.number)
    signatures = attestations.list_attestations(session, actor, name, version.number, None).items
    engines, others = evaluate_engines(session, actor, name, version, settings)
    report, samples, problem = read_smoke_test(session, actor, name, version, blobs)
    readme, readme_problem = ("", problem) if problem else read_readme(session, actor, version, blobs)
    if report is not None or readme:
        record_page_read(request, visitor, name, version.number)
    return render(
        request, "version.html", title=f"{name}@{version.number}", version=version, name=name,
        checks=[verdict for verdict in version.verdicts if verdict.check is not Check.ENGINE], engines=engines,
        heat=heat_map(norms), curve=loss_curve(version.facts), norms=norms, signatures=signatures, report=report,
        samples=samples, report_problem=problem, readme=readme, readme_problem=readme_problem,
        conclusion=conclude_view(version), reason=_find_reason(version),
        others=others, counted=_count_outcomes(others),
        examples=usage_examples(request, name, str(version.number), version),
        may_promote=may_change(visitor, Scope.PROMOTE, name), may_release=may_change(visitor, Scope.ADMIN, name),
    )  # fmt: skip


def _find_reason(version: VersionView) -> str:
    """The first finding of the worst verdict; empty if all pass."""
    for outcome in (Outcome.FAIL, Outcome.UNKNOWN, Outcome.WARN):
        for verdict in version.verdicts:
            if verdict.outcome is outcome and verdict.findings:
                return f"{verdict.check}: {verdict.findings[0].message}"
    return ""


# ------------------------------------------------------------------ files
@router.get(deps.VERSION + "/files/{path:path}")
def download_file(
    request: Request, session: deps.SessionDep, visitor: VisitorDep, settings: deps.SettingsDep, name: deps.NameDep,
    selector: deps.SelectorDep, path: str, blobs: deps.QuickBlobsDep,
) -> Response:  # fmt: skip
    """Send one file of a version to save, or lead to its store."""
    file = files.find_file(session, visitor.actor, name, selector, path)
    db.commit_early(session)
    if visitor.signed_in:
        record_read(request, name, selector)
    key = files.locate_bytes(blobs, file)
    seconds = settings.link_seconds
    url = blobs.presign_read(key, file.size_bytes, seconds=seconds, file_name=path) if blobs.is_remote else None
    if url is not None:
        return Response(status_code=303, headers=SECURITY_HEADERS | PRIVATE | {"Location": url})
    headers = {"Content-Disposition": attachment(path), "Content-Length": str(file.size_bytes)}
    body = routing.stream_in_threads(blobs.open(key, 0, file.size_bytes))
    return StreamingResponse(body, 200, SECURITY_HEADERS | PRIVATE | headers, media_type="application/octet-stream")


# ------------------------------------------------------------------ withdrawal
@router.post(deps.VERSION + "/withdrawal/{change}")
@limit_body(FORM_BYTES)
def change_version(
    request: Request, session: deps.SessionDep, visitor: VisitorDep, name: deps.NameDep, selector: deps.SelectorDep,
    change: str,
) -> Response:  # fmt: skip
    """Yank or quarantine a version, or undo that, with a reason."""
    reason = to_request(WithdrawRequest, reason=read_fields(request, visitor).get("reason", "")).reason
    if change not in withdraw.CHANGES:
        raise Invalid("REQUEST_INVALID", f"withdrawal: {change[:40]!r} is not one of {', '.join(withdraw.CHANGES)}")
    version = withdraw.change_state(session, visitor.actor, name, selector, change, reason)
    return redirect(adapter_path(str(name), version.number))


# ------------------------------------------------------------------ engines
def evaluate_engines(
    session: Session, actor: Actor, name: AdapterName, version: VersionView, settings: Settings
) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts of the engines in the setting, and of the newest version of every other engine of this kind, now."""
    profiles = engine_compat.of_kind(engine_profiles.parse_setting(settings.engines), version.facts)
    newest = [profile(f"{rules.name}=={rules.examined[-1]}") for rules in rulebook.engines().values()]
    stored = {profile.engine for profile in profiles}
    others = [other for other in engine_compat.of_kind(newest, version.facts) if other.engine not in stored]
    texts = list(map(str, (*profiles, *others)))
    verdicts = engine_compat.evaluate_version(session, actor, name, version.number, texts).items
    return verdicts[: len(profiles)], verdicts[len(profiles) :]


def _count_outcomes(engines: list[Verdict]) -> str:
    """How many of these engines say what."""
    words = {Outcome.PASS: "yes", Outcome.WARN: "with care", Outcome.FAIL: "no", Outcome.UNKNOWN: "unknown"}
    counts = Counter(verdict.outcome for verdict in engines)
    return ", ".join(f"{counts[outcome]} {word}" for outcome, word in words.items() if counts[outcome])


# ------------------------------------------------------------------ loss
@dataclass(frozen=True, slots=True)
class LossCurve:
    """The losses that the trainer's log claims: points of a drawing, the first and last value, and the last step."""

    points: str
    first: float
    last: float
    step: int


def loss_curve(facts: Mapping[str, Any]) -> LossCurve | None:
    """Return the curve of a version's facts; None with fewer than two points."""
    trainer = facts.get("trainer")
    losses = trainer.get("losses") if isinstance(trainer, dict) else None
    if not losses or len(losses) < 2:
        return None
    points = [(float(step), float(value)) for step, value in losses]
    return LossCurve(sparkline_points(points), points[0][1], points[-1][1], int(points[-1][0]))


# ------------------------------------------------------------------ norms
@dataclass(frozen=True, slots=True)
class HeatCell:
    """A number and how dark its cell is, from 0 to `HEAT_LEVELS` - 1; None where a layer has no such module."""

    value: float | None
    level: int


@dataclass(frozen=True, slots=True)
class HeatTable:
    """A table of numbers by layer and kind of module. `is_share`: shares of the base's weights, not norms.

    `outliers`: the cells, as (row, column, value), that are `OUTLIER` times the `median` and more, largest first.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    is_share: bool
    high: float
    median: float
    outliers: tuple[tuple[str, str, float], ...]


def heat_map(norms: NormsView) -> HeatTable | None:
    """The norms of a version as a table; shares of the base's weights where those are known. None without norms."""
    shares = {path: module.share for path, module in norms.modules.items() if module.share is not None}
    if shares:
        return heat_table(shares, module_grid.mean, is_share=True)
    return heat_table({path: module.update for path, module in norms.modules.items()}, module_grid.joint_norm)


def heat_table(
    values: Mapping[str, float | None], join: Join, *, high: float | None = None, is_share: bool = False
) -> HeatTable | None:
    """Numbers by module as a table; the darkest cell is `high`, or the highest one. None without numbers."""
    grid = module_grid.grid(values, join)
    if not grid.cells:
        return None
    if len(grid.rows) * len(grid.columns) > CELLS_LIMIT:
        totals = module_grid.totals(grid, by="row", join=join)[:CELLS_LIMIT]
        grid = Grid(tuple(row for row, _ in totals), ("all modules",), {(row, "all modules"): v for row, v in totals})
    high = max(grid.cells.values()) if high is None else high
    rows = tuple((row, tuple(_cell(grid, row, column, high) for column in grid.columns)) for row in grid.rows)
    median = statistics.median(grid.cells.values())
    outliers = [(row, column, value) for (row, column), value in grid.cells.items() if value >= OUTLIER * median > 0]
    outliers.sort(key=lambda cell: -cell[2])
    return HeatTable(grid.columns, rows, is_share, high, median, tuple(outliers[:OUTLIERS_SHOWN]))


def _cell(grid: Grid, row: str, column: str, high: float) -> HeatCell:
    value = grid.cells.get((row, column))
    level = int(HEAT_LEVELS * value / high) if value and high else 0
    return HeatCell(value, max(0, min(HEAT_LEVELS - 1, level)))


# ------------------------------------------------------------------ smoke test
@dataclass(frozen=True, slots=True)
class Sample:
    """A golden sample and how likely its answer is: on the base, with the adapter, and by how much it must differ."""

    golden: Golden | None
    base_log_p: float | None
    log_p: float | None
    margin_nats: float | None


def read_smoke_test(
    session: Session, actor: Actor, name: AdapterName, version: VersionView, blobs: BlobStore
) -> tuple[Report | None, list[Sample], str]:
    """The newest report of the smoke test, its samples, and why it cannot be read now: the page stays useful."""
    digests = [v.report for v in version.verdicts if v.check is Check.SMOKE and v.report]
    if not digests:
        return None, [], ""
    try:
        file = files.find_report(session, actor, name, version.number, digests[-1])
        db.commit_early(session)
        report = read_report(blobs, file)
        described = next((f for f in version.files if f.path == GOLDEN), None) if report.golden else None
        texts = read_golden(_read(blobs, described)) if described is not None else ()
    except Unavailable as e:
        return None, [], e.detail
    except (RegistryError, ValueError):
        return None, [], ""
    rows = report.golden[:ANSWERS_SHOWN]
    goldens = [*texts[: len(rows)], *[None] * (len(rows) - len(texts))]
    samples = [
        Sample(golden, row.get("base_log_p"), row.get("log_p"), row.get("margin_nats"))
        for golden, row in zip(goldens, rows, strict=True)
    ]
    return report, samples, ""


def read_report(blobs: BlobStore, file: Descriptor) -> Report:
    """The report in these bytes. `NotFound`, `ValueError`."""
    if file.size_bytes > REPORT_LIMIT_BYTES:
        raise ValueError(f"the report has {file.size_bytes} bytes")
    return Report.model_validate_json(_read(blobs, file))


def _read(blobs: BlobStore, file: Descriptor) -> bytes:
    data = bytes(blobs.read(key_of(file.digest), 0, file.size_bytes))
    if Digest.of(data) != file.digest:
        raise ValueError("the stored bytes are damaged")
    return data


@router.get(deps.VERSION + "/reports/{digest}/{image}.png")
def show_image(
    request: Request, session: deps.SessionDep, visitor: VisitorDep, name: deps.NameDep, selector: deps.SelectorDep,
    digest: str, image: Literal["before", "after"], blobs: deps.QuickBlobsDep,
) -> Response:  # fmt: skip
    """Show the image that a smoke test made without the adapter, or with it."""
    file = files.find_report(session, visitor.actor, name, selector, Digest(digest))
    db.commit_early(session)
    try:
        data = base64.b64decode(read_report(blobs, file).images.get(image, ""), validate=True)
    except (ValueError, binascii.Error):
        data = b""
    if not data.startswith(PNG):  # it comes from a process that has read the adapter
        raise NotFound("BLOB_UNKNOWN", f"the report {digest} has no image {image!r}")
    record_page_read(request, visitor, name, selector)
    return Response(data, headers=SECURITY_HEADERS | PRIVATE, media_type="image/png")
