"""Errors end in one sentence and one exit code; numbers and tables read well."""

from __future__ import annotations

import errno
from datetime import UTC, datetime

import click
import pytest
from pydantic import ValidationError

from cli import output
from registry import errors
from registry.api.aliases import AliasView, WithdrawRequest
from registry.errors import Invalid, Reason, RegistryError


def told(error: Exception, capsys: pytest.CaptureFixture[str], *, as_json: bool = False) -> tuple[int | None, str]:
    context = click.Context(click.Command("x"))
    context.meta["cli.as_json"] = as_json
    code = output.tell(error, context)
    return code, capsys.readouterr().err


def test_every_class_of_error_has_an_exit_code_and_no_other_class_has() -> None:
    assert set(output.EXIT_CODES) == {*errors.CLASSES, RegistryError}
    assert set(output.EXIT_CODES.values()) == {1, 2, 3, 4, 5, 6, 70, 75}


def test_an_error_is_a_sentence_with_its_reasons_and_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = [Reason("a.b", "q_proj", "is too wide"), Reason("a.c", "", "holds 'x'")]
    error = Invalid("TENSORS_INVALID", "weights: holds 'x'", reasons=reasons, next_step="save it again")
    assert told(error, capsys) == (2, "Error: weights: holds 'x'\n  - q_proj: is too wide\nNext: save it again\n")


def test_many_reasons_are_counted_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    error = Invalid("TENSORS_INVALID", "bad", reasons=[Reason("a.b", f"t{n}", "is odd") for n in range(40)])
    _, text = told(error, capsys)
    assert len(text.splitlines()) == 2 + output.REASONS_SHOWN
    assert text.splitlines()[-1] == f"  - and {40 - output.REASONS_SHOWN} more"


def test_an_error_in_json_is_the_problem_itself(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = told(Invalid("NAME_INVALID", "no"), capsys, as_json=True)
    assert code == 2
    assert '"code": "NAME_INVALID"' in text


def test_a_full_disk_is_for_later_and_a_missing_file_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(OSError(errno.ENOSPC, "No space left on device", "/x"), capsys)[0] == 75
    assert told(FileNotFoundError(errno.ENOENT, "No such file", "/x"), capsys) == (2, "Error: /x: No such file\n")


def test_what_fits_into_no_request_is_bad_input_and_an_answer_that_fits_no_shape_a_bug(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValidationError) as asked:
        WithdrawRequest(reason="\x1b[2J")
    assert told(asked.value, capsys) == (2, "Error: reason: holds the control character U+001B\n")
    with pytest.raises(ValidationError) as answered:
        AliasView.model_validate({})
    assert told(answered.value, capsys)[0] is None


def test_a_bug_keeps_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(TypeError("oops"), capsys)[0] is None


def test_columns_are_as_wide_as_their_longest_cell_whatever_its_color(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "n"), [(click.style("a", fg="red"), "1"), ("long", "22")], right=frozenset({"n"}))
    assert capsys.readouterr().out.splitlines() == ["NAME   N", "a      1", "long  22"]


def test_a_value_of_several_lines_stands_below_itself(capsys: pytest.CaptureFixture[str]) -> None:
    output.facts([("one", "a\nb"), ("empty", ""), ("three", "c")])
    assert capsys.readouterr().out.splitlines() == ["  one    a", "         b", "  three  c"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_700_000, "4.7 MB"), (134_000_000, "134 MB"), (2**41, "2.2 TB")],
)
def test_sizes_read_as_people_write_them(count: int, text: str) -> None:
    assert output.size(count) == text


def test_amounts_and_times_read_as_people_write_them() -> None:
    assert [output.amount(n) for n in (12, 1500, 134_515_008, 7 * 10**9)] == ["12", "1.5 k", "134.5 M", "7.0 G"]
    assert output.moment(datetime(2026, 5, 3, 14, 5, 59, tzinfo=UTC)) == "2026-05-03 14:05 UTC"
    assert output.moment(None) == ""
