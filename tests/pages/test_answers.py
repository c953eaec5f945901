"""Answers of base and adapter: on the pages of a version and of a comparison, and their limits at the server."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from registry.digest import Digest
from registry.evaluation.reports import ANSWER_LIMIT, ANSWERS_LIMIT, Answer, Report
from tests import samples
from tests.harness import Harness
from tests.pages.conftest import Browser

NAME = "acme/answering"
ANSWER = {"prompt": "Shop:", "base": " the base", "adapter": " the adapter"}


def test_the_pages_show_answers_side_by_side(registry: Harness, signed_in: Browser) -> None:
    for number, text in enumerate(("<b>first</b>", ""), start=1):
        registry.push(NAME, samples.lora(samples.llama(), seed=number))
        answer = Answer(prompt="Shop:", base=" as before", adapter=text)
        registry.validate(f"{NAME}@{number}", answers=(answer,))
    page = signed_in.get(f"/adapters/{NAME}/versions/1").text
    cells = '"Base" dir="auto"> as before</td><td data-label="Adapter" dir="auto">&lt;b&gt;first&lt;/b&gt;</td>'
    assert cells in page
    compared = signed_in.get("/compare", params={"first": f"{NAME}@1", "second": f"{NAME}@2"}).text
    cells = '<td data-label="first" dir="auto">&lt;b&gt;first&lt;/b&gt;</td><td data-label="second" dir="auto">–</td>'
    assert cells in compared


def test_control_and_formatting_characters_are_escaped_and_answers_are_bounded(registry: Harness) -> None:
    report = registry.report(Digest.of(b"x"), next(iter(registry.bases))).model_dump(mode="json")
    assert "answers" not in report, "reports without answers stay as they were"

    def read(answers: Any) -> Report:
        return Report.model_validate(report | {"answers": answers})

    hostile = read([ANSWER | {"adapter": "\x1b[31m\u202e\u0000"}]).answers[0]
    assert hostile.adapter == "\\x1b[31m\\u202e\\x00"
    assert len(read([ANSWER | {"adapter": "\x00" * ANSWER_LIMIT}]).answers[0].adapter) == ANSWER_LIMIT
    for wrong in (
        [ANSWER] * (ANSWERS_LIMIT + 1), [ANSWER | {"base": "x" * (ANSWER_LIMIT + 1)}], [ANSWER | {"more": "x"}],
        [ANSWER | {"base": None}], [ANSWER | {"base": ["x"]}],
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            read(wrong)
