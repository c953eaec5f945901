"""`adapter check`, `adapter engine-settings` and `adapter recheck-engines`.

`check` stores and sends nothing: it reads the base's spec and evaluates here by the server's rules, the numbers of a
folder's weights included. Of a version on another base it reads only the configuration and the header; on its own base
it shows the stored verdicts.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from registry import __version__, engines, lazy
from registry.adapters import read
from registry.api import PAGE_LIMIT
from registry.api.bases import BaseView
from registry.api.evaluation import EngineSettingsList, RecheckEnginesRequest
from registry.client import checks, response_checks, waiting
from registry.client.local import folder as folders
from registry.client.local.adapter_folder import AdapterFolder, read_adapter
from registry.client.registry import Registry
from registry.client.transport import invalid_response
from registry.digest import Digest
from registry.engines import EngineProfile
from registry.engines.settings import combine
from registry.errors import Invalid, Unavailable
from registry.evaluation.engine_settings import EngineSettings
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.names import Ref

from .console import output, session, versions
from .console.options import Command

NAMES_SHOWN = 10


@click.command(cls=Command)
@click.argument("target", metavar="DIR|REF")
@click.option("--base", default="", help="Base model to check against. Default: the version's, or the folder's.")
@click.option(
    "--engine", "texts", multiple=True,
    help="Also check this engine, such as vllm==0.33.0,max_lora_rank=32 (repeatable).",
)  # fmt: skip
def check(target: str, base: str, texts: tuple[str, ...]) -> None:
    """Check whether a folder or version fits a base, and what engines do with it.

    Nothing is pushed. The numbers of a folder's weights are read here (extra 'server'). Exits 6 if a check fails, 75 if
    the verdict on the weights of a version is pending. An engine profile is a name, a version and settings that differ
    from the defaults.
    """
    profiles = [engines.profile(text) for text in texts]
    is_folder = folders.is_meant(target)
    with session.registry() as registry:
        if is_folder:
            verdicts = _check_folder(registry, Path(target), base, profiles)
        else:
            verdicts = checks.check_version(registry, _parsed_ref(target), base, profiles)
    output.result({"items": verdicts}, lambda: _print_verdicts(target, verdicts, is_folder))
    if any(verdict.outcome is Outcome.FAIL for verdict in verdicts):
        output.exit_with(output.REFUSED)
    if waiting.is_pending(verdicts) and not is_folder:
        raise Unavailable("TRY_LATER", f"the verdict on the weights of {target} is still pending")


def _parsed_ref(target: str) -> Ref:
    try:
        return Ref.parse(target)
    except Invalid as e:
        step = "name a folder that exists, or a version as NAMESPACE/NAME"
        raise Invalid(e.code, e.detail, findings=e.findings, next_step=step) from e


def _check_folder(registry: Registry, path: Path, base: str, profiles: list[EngineProfile]) -> list[Verdict]:
    adapter = read_adapter(path)
    for reason in adapter.left_out:
        output.note(f"left out: {reason.location} {reason.message}")
    return checks.check_folder(registry, adapter, base, profiles, check_weights=_check_weights)


def _check_weights(adapter: AdapterFolder, subject: Digest, view: BaseView) -> list[Verdict]:
    """The verdict on the numbers of local weights, by the server's code; none without numpy."""
    try:
        measure = lazy.load("registry.server.evaluation.norms:measure", "server", "reading the numbers of weights")
        plan = lazy.load("registry.server.evaluation.norms:MeasuringPlan", "server")
    except Invalid as e:
        output.note(f"{e.detail}; without it, the push reads them")
        return []
    weights = read.weights_of(adapter.files)
    with adapter.sources[weights.path].open("rb") as file:

        def read_at(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        measured = measure(read_at, weights.size_bytes, plan.of(adapter.contents.header, adapter.contents.pairs))
    tools = {"registry": __version__}
    return [Verdict.of(Check.WEIGHTS, subject, view.name, view.fingerprint, measured.findings, made_by=tools)]


def _print_verdicts(target: str, verdicts: list[Verdict], is_folder: bool) -> None:
    for verdict in verdicts:
        scope = f"in {verdict.profile}" if verdict.profile else f"on {verdict.base}"
        scope = f"{scope}, its weights" if verdict.check is Check.WEIGHTS else scope
        output.line(f"{output.strong(target)} {scope}: {output.outcome(verdict.outcome)}")
        printed_fixes = set[str]()
        for finding in verdict.findings:
            output.line(f"  {finding.severity:<8} {versions.finding_line(finding)}")
            for fix in {*versions.fixes([finding])} - printed_fixes:
                output.line(output.faint(f"{'':<11}what to do: {fix}"))
                printed_fixes.add(fix)
        if verdict.check is Check.COMPAT and verdict.outcome is Outcome.PASS and not verdict.findings:
            output.line(output.faint("  every tensor matches a module of the base and its shape"))
    if is_folder and waiting.is_pending(verdicts):
        output.line(output.faint("the numbers (NaN, zeros) were not read"))


@click.command("engine-settings", cls=Command)
@click.argument("base")
@click.option(
    "--engine", "texts", multiple=True, required=True,
    help="Engine, such as vllm==0.33.0 (repeatable).",
)  # fmt: skip
@click.option("--slots", type=click.IntRange(1, 10_000), help="Adapters in one batch.")
def engine_settings(base: str, texts: tuple[str, ...], slots: int | None) -> None:
    """Recommend engine settings that serve the newest version of every adapter of BASE."""
    profiles = [str(engines.profile(text)) for text in texts]
    session.print_response(lambda registry: _read_settings(registry, base, profiles, slots), _print_settings)


def _read_settings(registry: Registry, base: str, profiles: list[str], slots: int | None) -> EngineSettingsList:
    """The settings for all adapters of the base, from all pages."""
    first, *others = response_checks.all_pages(
        lambda cursor: registry.engine_settings(base, profiles, slots=slots, cursor=cursor, limit=PAGE_LIMIT)
    )
    pages = [first, *others]
    if any([item.profile for item in page.items] != [item.profile for item in first.items] for page in pages):
        raise invalid_response("the pages of the settings are not about the same engines")
    by_engine = zip(*(page.items for page in pages), strict=True)
    whole = {"adapters": sum(page.adapters for page in pages), "next_cursor": ""}
    return first.model_copy(update=whole | {"items": [combine(items, slots=slots) for items in by_engine]})


def _print_settings(settings: EngineSettingsList) -> None:
    output.line(f"{output.plural(settings.adapters, 'adapter')} of {output.strong(settings.base)}")
    for item in settings.items:
        output.line(f"  {output.strong(item.profile)}")
        raised = f"; only because of {output.some(item.raised_by, NAMES_SHOWN)}" if item.raised_by else ""
        unserved, *_ = (*item.left_out, *item.unknown, "")
        served = len(item.left_out) < item.adapters
        saved, slot = item.bytes_per_slot - item.bytes_per_slot_without_largest, output.size(item.bytes_per_slot)
        output.facts(
            [
                ("set", " ".join(item.flags) or output.faint(_no_flags(item, served))),
                ("rank", f"{item.max_rank}, limit {item.rank_limit}{raised}" if served else ""),
                ("slots", f"{item.slots}, each {slot} before tensor parallelism" if served else ""),
                (
                    "without",
                    f"limit {item.rank_limit_without_largest}: {output.size(saved)} less a slot" if raised else "",
                ),
                ("modules", ", ".join(item.modules)),
                ("not served", _names(item.left_out, ": at any rank and number of slots")),
                ("unknown", _names(item.unknown, ": counted, but the engine may not serve them")),
                ("details", unserved and f"adapter check {unserved} --engine {item.profile}"),
            ],
            indent="    ",
        )


def _no_flags(item: EngineSettings, served: bool) -> str:
    if served:
        return "nothing: this engine has no such settings"
    return "nothing: it serves none of them" if item.adapters else "nothing: this base has no adapters yet"


def _names(names: Sequence[str], remark: str) -> str:
    return output.some(names, NAMES_SHOWN) + remark if names else ""


@click.command("recheck-engines", cls=Command)
def recheck_engines() -> None:
    """Renew the stored engine verdicts after engine rules changed. For administrators.

    A server does this when it starts. No weights are read. Versions that are up to date stay unchanged.
    """
    counts: Counter[str] = Counter(versions=0, headers=0, verdicts=0)
    with session.registry() as registry:
        for page in response_checks.all_pages(
            lambda cursor: registry.recheck_engines(RecheckEnginesRequest(cursor=cursor))
        ):
            counts.update(page.model_dump(exclude={"next_cursor"}))
    reread = f"read {output.plural(counts['headers'], 'header')} again, " if counts["headers"] else ""
    verdicts = output.plural(counts["verdicts"], "verdict")
    message = f"checked {output.plural(counts['versions'], 'version')}, {reread}wrote {verdicts}"
    output.result(dict(counts), lambda: output.line(message))
