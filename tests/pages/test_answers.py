"""Answers of base and adapter: on the pages of a version and of a comparison, and their limits at the server."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from registry.digest import Digest
from registry.errors import Unavailable
from registry.evaluation.reports import ANSWER_LIMIT, ANSWERS_LIMIT, Answer, Report
from tests import samples
from tests.harness import Harness
from tests.pages.conftest import Browser

NAME = "acme/answering"
ANSWER = {"prompt": "Shop:", "base": " the base", "adapter": " the adapter"}


def test_the_pages_show_answers_side_by_side(registry: Harness, signed_in: Browser) -> None:
    texts = ((" as\\nbefore", "<b>first</b>"), (" as\\nbefore", ""), ("' a' 9%", "x"))
    only = Answer(prompt="only here", base="b", adapter="a")
    for number, (base, text) in enumerate(texts, start=1):
        registry.push(NAME, samples.lora(samples.llama(), seed=number))
        answers = (Answer(prompt="Shop:", base=base, adapter=text), *([only] if number == 2 else []))
        registry.validate(f"{NAME}@{number}", answers=answers)
    page = signed_in.get(f"/adapters/{NAME}/versions/1").text
    cells = '"Base" dir="auto"> as↵before</td><td data-label="Adapter" dir="auto">&lt;b&gt;first&lt;/b&gt;</td>'
    assert cells in page
    alike = compare(signed_in, 1, 2)
    cells = """
<td data-label="base" dir="auto"><div> as↵before</div></td>
<td data-label="first" dir="auto">&lt;b&gt;first&lt;/b&gt;</td>
<td data-label="second" dir="auto">–</td>
"""
    assert cells.replace("\n", "") in alike
    cells = '<div>b</div></td><td data-label="first" dir="auto">–</td><td data-label="second" dir="auto">a</td>'
    assert cells in alike
    assert "answers differently" not in alike
    differing = compare(signed_in, 1, 3)
    assert "The base itself answers differently in the two tests" in differing
    assert "second test:</span> &#39; a&#39; 9%</div>" in differing


def test_the_pages_say_that_the_store_cannot_be_reached(
    registry: Harness, signed_in: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "acme/away"
    for seed in (1, 2):
        registry.push(name, samples.lora(samples.llama(), seed=seed) | {"README.md": b"# Read me"})
        registry.validate(f"{name}@{seed}", answers=(Answer(prompt="Shop:", base="b", adapter="a"),))
    pages = {
        f"/adapters/{name}": "README",
        f"/adapters/{name}/versions/1": "Smoke test",
        f"/compare?first={name}@1&second={name}@2": "Answers and golden samples",
    }
    assert [path for path in pages if "the store cannot be reached" in signed_in.get(path).text] == []
    calls = Counter[str]()

    def fail(*_: Any, **__: Any) -> bytes:
        calls["quick"] += 1
        raise Unavailable("STORE_UNAVAILABLE", "the bucket is away")

    # Only reads that fail soon: the pages have no other store.
    quick = SimpleNamespace(kind="s3", read=fail, open=fail, stat=fail)
    monkeypatch.setattr(registry.app.state, "quick_blobs", quick)
    monkeypatch.setattr(registry.app.state, "blobs", None)
    assert "the bucket is away" in signed_in.get("/status").text
    for path, missing in pages.items():
        page = signed_in.get(path)
        assert page.status_code == 200, path
        assert f"<b>{missing}: the store cannot be reached; try again in a moment.</b>" in page.text, path
        assert "the bucket is away" not in page.text, path
    assert calls["quick"] == 1 + 1 + 1 + 2, "each part is tried once"


def compare(browser: Browser, first: int, second: int) -> str:
    return browser.get("/compare", params={"first": f"{NAME}@{first}", "second": f"{NAME}@{second}"}).text


def test_control_and_formatting_characters_are_escaped_and_answers_are_bounded(registry: Harness) -> None:
    report = registry.report(Digest.of(b"x"), next(iter(registry.bases))).model_dump(mode="json")
    assert "answers" not in report, "reports without answers stay as they were"

    def read(answers: Any) -> Report:
        return Report.model_validate(report | {"answers": answers})

    hostile = read([ANSWER | {"adapter": "\x1b[31m\u202e\u0000"}]).answers[0]
    assert hostile.adapter == "\\x1b[31m\\u202e\\x00"
    spaced = "12\u00a0000\u202f€\u3000👩\u200d💻 می\u200cخواهم"
    assert read([ANSWER | {"adapter": spaced}]).answers[0].adapter == spaced
    assert len(read([ANSWER | {"adapter": "\x00" * ANSWER_LIMIT}]).answers[0].adapter) == ANSWER_LIMIT
    for wrong in (
        [ANSWER] * (ANSWERS_LIMIT + 1), [ANSWER | {"base": "x" * (ANSWER_LIMIT + 1)}], [ANSWER | {"more": "x"}],
        [ANSWER | {"base": None}], [ANSWER | {"base": ["x"]}],
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            read(wrong)
