"""Rows in every format, tables that fit the terminal, the pager, quiet and verbose."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import click
import pytest
import yaml

from cli import adapters, audit, jobs, publishers, tokens, webhooks
from cli.console import output, tables
from cli.console.progress import ProgressLine
from cli.console.tables import Column, Table
from registry.api.audit import EventView
from registry.durations import relative
from tests.cli.runner import CommandRunner, lines
from tests.cli.test_terminal import HOSTILE

PETS: Table[dict[str, object]] = Table((
    Column("name", lambda pet: pet["name"], lambda pet: output.strong(str(pet["name"]))),
    Column("legs", lambda pet: pet["legs"]),
    Column("born", lambda pet: pet["born"]),
    Column("notes", lambda pet: pet["notes"], wide=True),
))  # fmt: skip
BORN = datetime(2020, 5, 3, 14, 5, 59, tzinfo=UTC)
ROWS: list[dict[str, object]] = [
    {"name": "b" * 40, "legs": 4, "born": BORN, "notes": "=1+1"},
    {"name": "ant", "legs": 6, "born": None, "notes": HOSTILE},
]


def printed(capsys: pytest.CaptureFixture[str], **settings: str) -> str:
    with click.Context(click.Command("x")) as context:
        context.meta.update({f"cli.{name}": value for name, value in settings.items()})
        as_plain = [{**row, "born": str(row["born"])} for row in ROWS]
        PETS.print(as_plain if settings.get("output") in output.DOCUMENTS else ROWS)
    return capsys.readouterr().out


def test_a_table_cuts_long_cells_then_leaves_out_columns_to_fit_the_terminal() -> None:
    wide = [output.unstyled(line) for line in PETS.lines(ROWS, width=None)]
    assert wide == [f"{'NAME':<40}  LEGS  BORN", f"{'b' * 40}     4  2020-05-03", f"{'ant':<40}     6  -"]
    cut = [output.unstyled(line) for line in PETS.lines(ROWS, width=34)]
    assert cut == [f"{'NAME':<16}  LEGS  BORN", f"{'b' * 15}…     4  2020-05-03", f"{'ant':<16}     6  -"]
    narrow = [output.unstyled(line) for line in PETS.lines(ROWS, width=24)]
    assert narrow[1:] == [f"{'b' * 17}…     4", f"{'ant':<18}     6", "not shown: born (-o wide)"]
    assert all(len(line) <= 24 for line in narrow[:-1])
    assert PETS.lines(ROWS, width=24)[1].startswith(output.strong("x").partition("x")[0]), "a cut cell keeps its style"


EVENT = EventView(seq=1207, at=BORN, actor="token:nightly-training-of-acme", action="alias.move", object="acme/support",
                  detail={})  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 120])
def test_free_text_is_wrapped_while_times_and_numbers_stay_whole(width: int) -> None:
    text = "alias prod of acme/support moved from @3 to @4 and then, for reasons that take a while to tell, back again"
    flow = Column[EventView]("event", lambda _item: text, flows=True)
    shown = Table((*audit.EVENTS.columns[:-1], flow)).lines([EVENT], width=width)
    heading, first, *others = map(output.unstyled, shown)
    assert first.startswith(f"{EVENT.seq}  {output.moment(BORN)}  token:")
    assert ("EVENT" in heading) == (width >= 80), "it stands under its row where it has no space beside it"
    start = heading.index("EVENT") if width >= 80 else 2
    assert all(line[:start].isspace() for line in others)
    assert " ".join([*([first[start:]] if width >= 80 else []), *(line[start:] for line in others)]) == text
    assert all(len(line) <= width for line in (first, *others))
    assert "not shown" not in others[-1]


def test_ids_that_the_next_command_needs_are_never_cut() -> None:
    ids = [(table, column) for table, column in (
        (jobs.JOBS, "job"), (tokens.TOKENS, "id"), (webhooks.WEBHOOKS, "id"), (publishers.PUBLISHERS, "id"),
    ) if not table.column(column).whole]  # fmt: skip
    assert ids == []


def test_wide_has_every_column_and_exact_times(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, output="wide")
    assert "2020-05-03 14:05:59 UTC" in text
    assert text.splitlines()[0].split() == ["NAME", "LEGS", "BORN", "NOTES"]


@pytest.mark.security
def test_csv_is_exact_and_neither_steers_a_terminal_nor_holds_a_formula(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, output="csv")
    header, first, second = csv.reader(io.StringIO(text))
    assert header == ["name", "legs", "born", "notes"]
    assert first == ["b" * 40, "4", "2020-05-03T14:05:59+00:00", "'=1+1"]
    assert second[:3] == ["ant", "6", ""]
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.security
def test_yaml_escapes_what_does_not_print_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, output="yaml")
    assert all(line.isprintable() for line in text.splitlines())
    assert yaml.safe_load(text)["items"][1]["notes"] == HOSTILE


def test_columns_and_order_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, output="csv", columns="legs,name", sort="legs").splitlines()[1:] == [
        f"4,{'b' * 40}",
        "6,ant",
    ]
    assert printed(capsys, output="name", sort="-born") == f"{'b' * 40}\nant\n"
    assert [row["legs"] for row in json.loads(printed(capsys, output="json", sort="-legs"))["items"]] == [6, 4]
    with pytest.raises(click.UsageError, match="no column 'colour'; there are: name, legs, born, notes"):
        printed(capsys, sort="colour")


def test_times_are_relative_within_a_month() -> None:
    now = datetime(2026, 5, 3, tzinfo=UTC)
    texts = {seconds: relative(now - timedelta(seconds=seconds), now) for seconds in (5, 90, 7300, -3601, 86_400)}
    assert list(texts.values()) == ["5 s ago", "1 min ago", "2 h ago", "in 1 h", "1 day ago"]
    assert relative(now - timedelta(days=40), now) == "2026-03-24"
    assert relative(None) == ""


def test_every_command_with_rows_takes_every_format(released: CommandRunner) -> None:
    released.push("acme/other")
    released("tag", "add", "acme/support", "team=nlp")
    assert [item["name"] for item in released("list", "-o", "json").json["items"]] == ["acme/other", "acme/support"]
    assert yaml.safe_load(released("list", "-o", "yaml").stdout) == released("list", "--json").json
    assert released("list", "-o", "name", "--sort", "-name").stdout == "acme/support\nacme/other\n"
    assert released("versions", "acme/support", "-o", "name").stdout == "acme/support@2\nacme/support@1\n"
    table = released("list", "--columns", "name,tags,size", "-o", "csv").stdout
    assert [row[1] for row in csv.reader(io.StringIO(table))] == ["tags", "", "team=nlp"]
    assert "no column 'nam'; there are: name, newest" in released("list", "--columns", "nam", expect=2).stderr
    assert yaml.safe_load(released("show", "acme/support", "-o", "yaml").stdout)["number"] == 2
    assert yaml.safe_load(released("show", "acme/none", "-o", "yaml", expect=4).stderr)["code"] == "ADAPTER_UNKNOWN"
    assert "'csv' is not one of" in released("show", "acme/support", "-o", "csv", expect=2).stderr
    assert "need --namespace" in released("promote", "acme/support@1", "beta", "-o", "csv", expect=2).stderr


def test_a_limited_list_says_how_many_there_are(released: CommandRunner) -> None:
    released.push("acme/other")
    for words, total in ((["list"], 2), (["versions", "acme/support"], 2), (["job", "list"], 3)):
        limited = released(*words, "--limit", 1)
        assert limited.stderr == f"1 of {total}; --limit shows more\n"
        assert released(*words, "--limit", 1, "--json").json["total"] == total
        assert released(*words, "--limit", 50).stderr == ""
    assert lines(released("list", "--limit", 1, "-q").stdout)[1].startswith("acme/other")
    assert released("-q", "list", "--limit", 1).stderr == ""


def test_verbose_reports_requests_without_the_secrets_of_links(released: CommandRunner) -> None:
    plain = released("list", "-o", "csv")  # exact times: "3 s ago" would change
    for words in (["list", "-v"], ["-v", "list"]):
        requested = released(*words, "-o", "csv")
        assert requested.stdout == plain.stdout
        assert requested.stderr.startswith("GET http://registry.embedded/api/v1/adapters 200 ")
    pulled = released("-v", "pull", "acme/support", released.folder / "out").stderr
    assert "POST http://registry.embedded/api/v1/pulls 200" in pulled
    assert "?" not in pulled


def print_200_lines() -> None:
    for n in range(200):
        output.line(str(n))


def test_long_output_goes_through_the_pager_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paged: list[str] = []
    monkeypatch.setattr(click, "echo_via_pager", paged.append)
    output.result({}, print_200_lines)
    assert capsys.readouterr().out.count("\n") == 200
    monkeypatch.setattr(output, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    output.result({}, lambda: output.line("short"))
    assert (capsys.readouterr().out, paged) == ("short\n", [])
    output.result({}, print_200_lines)
    assert (capsys.readouterr().out, len(paged), paged[0].count("\n")) == ("", 1, 200)


def test_progress_has_counts_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.console.progress.on_terminal", lambda: True)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    progress = ProgressLine("acme", total_items=4)
    progress.start(8_000_000)
    progress.advance(2_000_000)
    progress.finish_item()
    assert progress.text(110.0) == "acme  1 of 4  2.0 MB of 8.0 MB  200 kB/s  30 s left"


def test_the_time_left_comes_from_the_adapters_until_the_bytes_of_all_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cli.console.progress.on_terminal", lambda: True)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    progress = ProgressLine("acme", total_items=3)
    for size_bytes, moved_bytes in ((1_000_000, 900_000), (2_000_000, 600_000)):
        progress.start(size_bytes)
        progress.advance(moved_bytes)
        assert " left" not in progress.text(110.0)
    progress.start(3_000_000)
    assert progress.text(110.0).endswith("10 s left")


def test_the_table_of_adapters_fits_80_columns() -> None:
    widths = [len(column.name) + 20 for column in adapters.ADAPTERS.columns]
    shown = tables._fit(widths, [tables.LEAST_WIDTH] * len(widths), 80, flows=False)
    assert sum(shown) + 2 * (len(shown) - 1) <= 80
