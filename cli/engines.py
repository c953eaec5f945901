"""`adapter engine-settings` and `adapter recheck-engines`: how engines serve a base's adapters, and their verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click

from registry import engines
from registry.api.evaluation import EngineSettingsList, RecheckEnginesRequest
from registry.engine_settings import EngineSettings

from . import output, session

NAMES_SHOWN = 10


@click.command("engine-settings")
@click.argument("base")
@click.option(
    "--engine", "texts", multiple=True, required=True, metavar="PROFILE",
    help="Engine, such as vllm==0.33.0 (repeatable).",
)  # fmt: skip
@click.option("--slots", type=click.IntRange(1, 10_000), help="Adapters in one batch.")
@output.json_option
def engine_settings(base: str, texts: tuple[str, ...], slots: int | None) -> None:
    """Recommend engine settings that serve the newest version of every adapter of BASE.

    \b
    adapter engine-settings smollm2 --engine vllm==0.33.0 --engine sglang==0.5.23
    """
    profiles = [str(engines.profile(text)) for text in texts]
    with session.registry() as registry:
        answer = registry.engine_settings(base, profiles, slots=slots)
    output.answer(answer, lambda: _print(answer))


def _print(answer: EngineSettingsList) -> None:
    click.echo(f"{output.plural(answer.adapters, 'adapter')} of {output.strong(answer.base)}")
    for item in answer.items:
        click.echo(f"  {output.strong(item.profile)}")
        raised = f"; only because of {_named(item.raised_by)}" if item.raised_by else ""
        doubtful, *_ = (*item.left_out, *item.unsure, "")
        served = len(item.left_out) < item.adapters
        saved, slot = item.bytes_per_slot - item.bytes_per_slot_without, output.size(item.bytes_per_slot)
        output.facts(
            [
                ("set", " ".join(item.flags) or output.faint(_nothing(item, served))),
                ("rank", f"{item.max_rank}, limit {item.rank_limit}{raised}" if served else ""),
                ("slots", f"{item.slots}, each {slot} before tensor parallelism" if served else ""),
                ("without", f"limit {item.rank_limit_without}: {output.size(saved)} less a slot" if raised else ""),
                ("modules", ", ".join(item.modules)),
                ("left out", _named(item.left_out, ": not served, whatever rank and slots are")),
                ("unsure", _named(item.unsure, ": counted, but whether they are served is not known")),
                ("why", doubtful and f"adapter check {doubtful} --engine {item.profile}"),
            ],
            indent="    ",
        )


def _nothing(item: EngineSettings, served: bool) -> str:
    if served:
        return "nothing: this engine has no such settings"
    return "nothing: it serves none of them" if item.adapters else "nothing: this base has no adapters yet"


def _named(names: Sequence[str], what: str = "") -> str:
    """The first names, how many more there are, and what is said of them; empty without a name."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "") + (what if names else "")


# ------------------------------------------------------------------ verdicts
@click.command("recheck-engines")
@output.json_option
def recheck_engines() -> None:
    """Renew the stored engine verdicts after engine rules changed. For administrators.

    A server does this when it starts. No weights are read. Versions that are up to date stay unchanged.
    """
    counts: Counter[str] = Counter(versions=0, headers=0, verdicts=0)
    cursor, more = "", True
    with session.registry() as registry:
        while more:
            page = registry.recheck_engines(RecheckEnginesRequest(cursor=cursor))
            counts.update(page.model_dump(exclude={"next_cursor"}))
            cursor = page.next_cursor
            more = bool(cursor)
    reread = f"read {output.plural(counts['headers'], 'header')} again, " if counts["headers"] else ""
    verdicts = output.plural(counts["verdicts"], "verdict")
    message = f"checked {output.plural(counts['versions'], 'version')}, {reread}wrote {verdicts}"
    output.answer(dict(counts), lambda: click.echo(message))
