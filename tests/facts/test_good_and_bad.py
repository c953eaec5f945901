"""The header-only verdict on real adapters: no good one fails its base, no structural defect passes.

What needs values (NaN, infinity), another base's identity or the folder as a whole is not evaluated here; each such
entry is listed with the reason, so that nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from registry import bases, compat
from registry.adapters import peft, safetensors
from registry.adapters.peft import config
from registry.bases import BaseSpec
from registry.errors import RegistryError
from registry.evaluation.verdicts import Outcome, add_up, summarize
from registry.versions.files import BASE_WEIGHTS, BASE_WEIGHTS_INDEX
from tests import fixtures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, transformers, peft) is not installed"),
]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
REFUSED = "refused"
NEEDS_VALUES = {"nan", "inf-one-value"}
"""Bad entries whose header is flawless: the check `smoke` finds them."""
FILES_MISSING = {"config-missing", "weights-missing", "pickle-with-code", "lora-pickle-bin"}
"""Entries without a configuration or a weights file: the push refuses the folder."""


def read(path: Path) -> safetensors.Header:
    return safetensors.read_bytes(path.read_bytes(), file=path.name)


@lru_cache(maxsize=32)
def base_spec(name: str) -> BaseSpec:
    folder = fixtures.tiny_bases() / name
    index = folder / BASE_WEIGHTS_INDEX
    files = bases.shards(index.read_bytes()) if index.exists() else (BASE_WEIGHTS,)
    return bases.base_spec(
        name,
        bases.read_config((folder / "config.json").read_bytes()),
        [read(folder / file) for file in files],
        tokenizer=(folder / "tokenizer.json").read_bytes(),
        tokenizer_config=(folder / "tokenizer_config.json").read_bytes(),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )


def verdict_of(folder: Path, base: str) -> tuple[str, str]:
    """(outcome, its sentence); `refused` where an error answers."""
    try:
        spec = peft.describe(config.read_config((folder / CONFIG).read_bytes()), read(folder / WEIGHTS))
    except (RegistryError, FileNotFoundError) as e:
        return REFUSED, str(e)
    findings = compat.check_fit(spec, base_spec(base))
    return add_up(findings).value, summarize(findings)


def entries(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(name, fits, outcome, sentence) of every adapter in the folder; the table is printed for `pytest -s`."""
    for name, entry in fixtures.manifest(folder).items():
        outcome, message = verdict_of(folder / name, entry["base"])
        print(f"{name:34} {entry['base']:22} {entry['fits']:15} {outcome:8} {message[:90]}")
        yield name, entry["fits"], outcome, message


def test_no_good_adapter_fails_and_every_lora_dora_and_rslora_passes() -> None:
    wrong = []
    for name, _, outcome, message in entries(fixtures.good()):
        good = {Outcome.PASS, Outcome.WARN} if name.startswith("lora-") else set(Outcome) - {Outcome.FAIL}
        if outcome not in good and name not in FILES_MISSING:
            wrong.append(f"{name}: {outcome}: {message}")
    assert wrong == []


def test_no_structural_defect_of_the_bad_adapters_passes() -> None:
    wrong = []
    for name, fits, outcome, message in entries(fixtures.bad()):
        expected = {"yes": {"pass"}, "no": {"fail", REFUSED}, "only-with-care": {"pass", "warn", "unknown"}}[fits]
        if outcome not in expected and name not in NEEDS_VALUES:
            wrong.append(f"{name} ({fits}): {outcome}: {message}")
        if outcome == REFUSED and "No such file" in message:
            assert name in FILES_MISSING
    assert wrong == []


def test_the_tiny_bases_are_distinguished_only_by_their_architecture() -> None:
    first = base_spec("llama-a").fingerprint
    same = ["llama-a-sharded", "llama-a-bf16", "llama-a-fp16", "llama-a-renamed", "llama-a-finetuned",
            "llama-b-other-weights"]  # fmt: skip
    other = ["llama-wide", "llama-deep", "llama-tied", "llama-no-gqa", "llama-a-vocab520", "gpt2-conv1d", "phi3-fused",
             "qwen2-bias", "mixtral-moe"]  # fmt: skip
    assert {base_spec(name).fingerprint for name in same} == {first}
    assert len({base_spec(name).fingerprint for name in other} | {first}) == len(other) + 1


def test_a_packed_base_has_the_shapes_of_the_base_it_was_packed_from() -> None:
    if not (fixtures.tiny_bases() / "llama-a-nf4").is_dir():
        pytest.skip("bitsandbytes is not installed")
    packed, plain = base_spec("llama-a-nf4"), base_spec("llama-a")
    shapes = {path: (m.in_features, m.out_features, m.is_known) for path, m in packed.modules.items()}
    assert shapes == {path: (m.in_features, m.out_features, True) for path, m in plain.modules.items()}
