"""The error tree: every code has one class, and the client rebuilds it from the code."""

from __future__ import annotations

import pytest

from registry import errors
from registry.errors import Invalid, RegistryError, TooLarge, Unavailable
from registry.findings import Finding


def test_a_code_belongs_to_exactly_one_class() -> None:
    codes = [code for cls in errors.CLASSES for code in cls.CODES]
    assert len(codes) == len(set(codes))


def test_every_class_of_the_tree_is_listed() -> None:
    assert set(RegistryError.__subclasses__()) == set(errors.CLASSES)


def test_a_class_refuses_a_code_that_is_not_its_own() -> None:
    with pytest.raises(ValueError, match="has no code"):
        Invalid("DENIED", "x")


@pytest.mark.parametrize("cls", errors.CLASSES)
def test_a_problem_is_rebuilt_as_the_same_error(cls: type[RegistryError]) -> None:
    for code in cls.CODES:
        raised = cls(code, "file x: rule y", findings=[Finding("a.b", "x", "y")], next_step="do z")
        rebuilt = errors.from_problem(raised.to_problem())
        assert type(rebuilt) is cls
        assert (rebuilt.code, rebuilt.detail, rebuilt.findings, rebuilt.next_step) == (
            code, "file x: rule y", (Finding("a.b", "x", "y"),), "do z")  # fmt: skip


def test_a_finding_in_one_line_repeats_nothing_that_its_message_says() -> None:
    for message, line in (
        ("q_proj has shape [8, 96]; the base takes [8, 64]", "q_proj has shape [8, 96]; the base takes [8, 64]"),
        ("the shape differs", "q_proj: the shape differs (expected [8, 64], actual [8, 96])"),
    ):
        assert Finding("a.b", "q_proj", message, "error", "[8, 64]", "[8, 96]").to_text() == line
    assert Finding("a.b", "r", "rank 48", "error", "4", "8").to_text() == "r: rank 48 (expected 4, actual 8)"
    assert Finding("a.b", "r", "is wrong").to_text() == "r: is wrong"


def test_an_unknown_code_is_a_wrong_response_that_keeps_its_detail() -> None:
    rebuilt = errors.from_problem({"code": "FROM_THE_FUTURE", "detail": "it is new"})
    assert (type(rebuilt), rebuilt.code) == (errors.Corrupt, "RESPONSE_INVALID")
    assert "FROM_THE_FUTURE" in rebuilt.detail
    assert "it is new" in rebuilt.detail


def test_a_problem_with_odd_parts_is_still_an_error() -> None:
    odd = {"code": "SIZE_INVALID", "findings": ["x", {"code": 1}], "retry_after_seconds": "soon"}
    rebuilt = errors.from_problem(odd)
    assert isinstance(rebuilt, TooLarge)
    assert rebuilt.retry_after_seconds is None
    assert rebuilt.findings == ()
    assert errors.from_problem({"code": "SIZE_INVALID", "findings": 5}).findings == ()


def test_a_problem_of_millions_of_characters_is_cut() -> None:
    finding = {"code": "a.b", "location": "x", "message": "y" * 100}
    text = "\x1b" * 3_000_000
    rebuilt = errors.from_problem(
        {"code": "SIZE_INVALID", "detail": text, "next_step": text, "findings": [finding] * 50_000}
    )
    assert (len(rebuilt.detail), len(rebuilt.next_step), len(rebuilt.findings)) == (20_000, 2000, 200)


def test_retry_after_travels() -> None:
    problem = Unavailable("TRY_LATER", "busy", retry_after_seconds=7).to_problem()
    assert problem["retry_after_seconds"] == 7
    assert errors.from_problem(problem).retry_after_seconds == 7
