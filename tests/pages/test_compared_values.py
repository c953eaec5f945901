"""The cosines of two versions, on the page that compares them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from registry.server.evaluation import weights
from registry.versions.files import WEIGHTS
from tests import samples
from tests.harness import Harness
from tests.pages.conftest import Browser

NAME = "acme/compared"


def updates(files: samples.Files) -> dict[str, Any]:
    """Module → BA, computed as a whole."""
    tensors = {
        name: np.frombuffer(data, "<f4").reshape(shape)
        for name, (_, shape, data) in samples.tensors_of(files[WEIGHTS]).items()
    }
    paths = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight")}
    return {
        path.removeprefix("base_model.model."): tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
        for path in paths
    }


def test_the_page_shows_the_cosine_of_each_module(registry: Harness, signed_in: Browser) -> None:
    first = samples.lora(samples.llama(), rank=8, seed=1)
    second = samples.lora(samples.llama(), rank=4, seed=2, targets=("q_proj", "v_proj", "down_proj"))
    for files in (first, second):
        registry.push(NAME, files)
    others = updates(second)
    expected = [
        float((update * others[path]).sum() / np.linalg.norm(update) / np.linalg.norm(others[path]))
        for path, update in updates(first).items()
    ]
    assert read_cosines(signed_in, 1, 2) == pytest.approx(sorted(expected), abs=2e-3)
    assert read_cosines(signed_in, 1, 1) == [1.0] * len(expected)


def read_cosines(browser: Browser, first: int, second: int) -> list[float]:
    page = browser.get("/compare", params={"first": f"{NAME}@{first}", "second": f"{NAME}@{second}"}).text
    table = page.partition('aria-label="Cosines by layer and module"')[2].partition("</table>")[0]
    return sorted(float(text.replace("\u2212", "-")) for text in re.findall(r"<td[^>]*>([^<]+)</td>", table))


def test_versions_that_are_too_large_or_withheld_are_not_compared(
    registry: Harness, signed_in: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (3, 4):
        registry.push("acme/withheld", samples.lora(samples.llama(), seed=seed))
    address = {"first": "acme/withheld@1", "second": "acme/withheld@2"}
    with monkeypatch.context() as patch:
        patch.setattr(weights, "INLINE_BYTES", 100)
        assert "the limit of a comparison is 100" in signed_in.get("/compare", params=address).text
    registry.admin.quarantine("acme/withheld@1", reason="leaks a name")
    page = signed_in.get("/compare", params=address).text
    assert "There are no cosines: version 1 of" in page
    assert 'aria-label="Cosines' not in page
