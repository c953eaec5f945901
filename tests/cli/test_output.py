"""Errors, exit codes, tables and numbers."""

from __future__ import annotations

import errno
import json
from datetime import UTC, datetime

import click
import pytest
from pydantic import ValidationError

from cli.console import output
from registry import errors
from registry.api.aliases import AliasView, WithdrawRequest
from registry.errors import Invalid, RegistryError
from registry.findings import Finding


def printed(error: Exception, capsys: pytest.CaptureFixture[str], *, as_json: bool = False) -> tuple[int | None, str]:
    context = click.Context(click.Command("x"))
    context.meta["cli.output"] = "json" if as_json else ""
    code = output.print_error(error, context)
    return code, capsys.readouterr().err


def test_every_class_of_error_has_an_exit_code_and_no_other_class_has() -> None:
    assert set(output.EXIT_CODES) == {*errors.CLASSES, RegistryError}
    assert set(output.EXIT_CODES.values()) == {1, 2, 3, 4, 5, 6, 70, 74, 75}


def test_an_error_shows_its_reasons_and_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = [Finding("a.b", "q_proj", "is too wide"), Finding("a.c", "", "holds 'x'")]
    error = Invalid("TENSORS_INVALID", "weights: holds 'x'", findings=reasons, next_step="save it again")
    assert printed(error, capsys) == (2, "Error: weights: holds 'x'\n  - q_proj: is too wide\nNext: save it again\n")


def test_many_reasons_are_counted_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    error = Invalid("TENSORS_INVALID", "bad", findings=[Finding("a.b", f"t{n}", "is odd") for n in range(40)])
    _, text = printed(error, capsys)
    assert len(text.splitlines()) == 2 + output.FINDINGS_SHOWN
    assert text.splitlines()[-1] == f"  - and {40 - output.FINDINGS_SHOWN} more"


def test_an_error_in_json_is_the_problem_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(Invalid("NAME_INVALID", "no"), capsys, as_json=True)
    assert code == 2
    assert '"code": "NAME_INVALID"' in text


def test_a_full_disk_exits_74_and_a_missing_file_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(OSError(errno.ENOSPC, "No space left on device", "/x"), capsys) == (
        74,
        "Error: '/x' cannot be written: its disk is full\n",
    )
    assert printed(FileNotFoundError(errno.ENOENT, "No such file", "/x"), capsys) == (2, "Error: /x: No such file\n")


def test_an_invalid_request_is_bad_input_and_an_invalid_response_a_bug(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValidationError) as request:
        WithdrawRequest(reason="\x1b[2J")
    assert printed(request.value, capsys) == (2, "Error: reason: holds the control character U+001B\n")
    with pytest.raises(ValidationError) as response:
        AliasView.model_validate({})
    assert printed(response.value, capsys)[0] is None


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(TypeError("oops"), capsys)[0] is None


def test_a_value_of_several_lines_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.facts([("one", ["a", "b"]), ("empty", ""), ("three", "c")])
    assert capsys.readouterr().out.splitlines() == ["  one    a", "         b", "  three  c"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_700_000, "4.7 MB"), (134_000_000, "134 MB"), (2**41, "2.2 TB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert output.size(count) == text


def test_amounts_and_times_for_people() -> None:
    assert [output.amount(n) for n in (12, 1500, 134_515_008, 7 * 10**9)] == ["12", "1.5 k", "134.5 M", "7.0 G"]
    assert output.moment(datetime(2026, 5, 3, 14, 5, 59, tzinfo=UTC)) == "2026-05-03 14:05:59 UTC"
    assert output.moment(None) == ""


def test_findings_print_as_json() -> None:
    finding = Finding("a.b", "q_proj", "is too wide", "warning", "8", "16")
    assert json.loads(output.json_text({"findings": [finding]})) == {
        "findings": [{"code": "a.b", "location": "q_proj", "message": "is too wide", "severity": "warning",
                      "expected": "8", "actual": "16"}]
    }  # fmt: skip
