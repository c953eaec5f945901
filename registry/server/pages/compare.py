"""The page that compares two versions: what differs in configuration, targets, files, verdicts and norms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request, Response
from sqlmodel import Session

from registry.adapters import module_grid
from registry.api.catalog import VersionView
from registry.errors import Invalid, NotFound, RegistryError
from registry.evaluation.verdicts import Check
from registry.names import NAME_LIMIT, AdapterName, Ref
from registry.server.catalog import versions
from registry.server.catalog.verdicts import label
from registry.server.evaluation import weights
from registry.server.http.dependencies import QuickBlobsDep, SessionDep, SettingsDep
from registry.server.pages.rendering import create_router, render
from registry.server.pages.sessions.visitors import Visitor, VisitorDep, record_page_read
from registry.server.pages.versions import HeatTable, evaluate_engines, heat_table, read_smoke_test
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore

router = create_router()
ROWS_SHOWN = 200
_FACTS = ("format", "method", "task", "ranks", "alpha", "scales", "use_dora", "use_rslora", "bias", "dtypes",
          "parameters", "modules", "trained_tokens", "saved_modules", "trigger_words", "peft_version")  # fmt: skip
Reference = Annotated[str, Query(max_length=4 * NAME_LIMIT)]


@dataclass(frozen=True, slots=True)
class Difference:
    """A row: what is compared, and its two values; None where one side has none."""

    label: str
    first: Any
    second: Any

    @property
    def is_equal(self) -> bool:
        """Whether both sides have the same value."""
        return bool(self.first == self.second)


@dataclass(frozen=True, slots=True)
class VersionComparison:
    """Everything that the page shows about two versions."""

    first: VersionView
    second: VersionView
    facts: list[Difference]
    targets_added: list[str]
    targets_removed: list[str]
    files: list[Difference]
    verdicts: list[Difference]
    engines: list[Difference]
    norms: list[Difference]
    cosines: HeatTable | None
    no_cosines: str
    golden: list[Difference]
    answers: list[Difference]
    report_problem: str


@router.get("/compare")
def compare_versions(
    request: Request,
    session: SessionDep,
    visitor: VisitorDep,
    settings: SettingsDep,
    blobs: QuickBlobsDep,
    first: Reference = "",
    second: Reference = "",
) -> Response:
    """Compare two versions, or show the form that asks for them."""
    status, problem, comparison = 200, "", None
    if first and second:
        try:
            comparison = _compare(request, session, visitor, (first, second), settings, blobs)
        except (Invalid, NotFound) as e:
            status, problem = (404 if isinstance(e, NotFound) else 422), e.detail
    return render(
        request, "compare.html", status, title="Compare versions", first=first, second=second, problem=problem,
        comparison=comparison,
    )  # fmt: skip


def _compare(
    request: Request, session: Session, visitor: Visitor, texts: tuple[str, str], settings: Settings, blobs: BlobStore
) -> VersionComparison:  # fmt: skip
    sides, golden, answers, problems = [], [], [], []
    for text in texts:
        ref = Ref.parse(text.strip())
        view = versions.show(session, visitor.actor, ref.name, ref.selector)
        stored, others = evaluate_engines(session, visitor.actor, ref.name, view, settings)
        norms = weights.show_norms(session, visitor.actor, ref.name, view.number)
        updates = module_grid.grid({path: module.update for path, module in norms.modules.items()})
        report, samples, problem = read_smoke_test(session, visitor.actor, ref.name, view, blobs)
        problems.append(problem)
        if report is not None:
            record_page_read(request, visitor, ref.name, view.number)
        golden.append({sample.golden.prompt: sample.log_p for sample in samples if sample.golden is not None})
        answers.append({answer.prompt: answer for answer in report.answers} if report is not None else {})
        sides.append((view, [*stored, *others], dict(module_grid.totals(updates, by="row"))))
    (first_view, first_engines, first_norms), (second_view, second_engines, second_norms) = sides
    cosines, no_cosines = _compare_updates(session, visitor, blobs, first_view, second_view)
    targets = [set(view.facts.get("targets") or ()) for view in (first_view, second_view)]
    return VersionComparison(
        first=first_view, second=second_view,
        facts=[
            Difference("base", first_view.base, second_view.base),
            *(Difference(key.replace("_", " "), first_view.facts.get(key), second_view.facts.get(key)) for key in _FACTS
              if key in first_view.facts or key in second_view.facts),
            Difference("size", first_view.size_bytes, second_view.size_bytes),
        ],
        targets_added=sorted(targets[1] - targets[0]), targets_removed=sorted(targets[0] - targets[1]),
        files=_differences(*({file.path: file.digest for file in view.files} for view in (first_view, second_view))),
        verdicts=_differences(*(
            {label(v.check, "", v.by_owner): v.outcome for v in view.verdicts if v.check is not Check.ENGINE}
            for view in (first_view, second_view)
        )),
        engines=_differences(*({v.profile: v.outcome for v in engines} for engines in (first_engines, second_engines))),
        norms=_differences(first_norms, second_norms), cosines=cosines, no_cosines=no_cosines,
        golden=_differences(*golden), answers=_differences(*answers),
        report_problem=next(filter(None, problems), ""),
    )  # fmt: skip


def _compare_updates(
    session: Session, visitor: Visitor, blobs: BlobStore, first: VersionView, second: VersionView
) -> tuple[HeatTable | None, str]:
    """The cosines of the updates by layer and module, or why there are none."""
    sides = [(AdapterName.parse(view.name), view.number) for view in (first, second)]
    try:
        cosines = weights.compare_updates(session, visitor.actor, blobs, *sides)
    except RegistryError as e:
        return None, e.detail
    table = heat_table(cosines, module_grid.mean, high=1.0)
    return table, "" if table else "no module has an update of equal shape in both"


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """The rows of both sides in the order of the first one."""
    return [Difference(key, first.get(key), second.get(key)) for key in dict.fromkeys([*first, *second])][:ROWS_SHOWN]
