"""Chat templates of adapters in the worker: an unsafe or endless one is a failing finding of one attempt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import transformers

from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import Pool, ProcessLimits
from registry.worker.smoke import dialogue
from registry.worker.smoke.result import SmokeResult

pytestmark = pytest.mark.security
GOOD = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
UNBOUNDED = {
    "ten billion rounds": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "ten billion characters": "{{ 'a' * 10 ** 10 }}",
    "a power of a power": "{{ 9 ** (9 ** 8) }}",
    "doubled text": "{% set n = namespace(t='a') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "two million characters": "{{ 'a' * 2000000 }}",
}
UNSAFE = {
    "an attribute by its name": "{{ messages.__class__ }}",
    "an item by its name": "{{ messages['__class__'] }}",
    "a name that is put together": "{% set k = '__cla' ~ 'ss__' %}{{ messages[k].x }}",
    "a filter that reads attributes": "{{ messages | attr('append') }}",
    "another file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'x' as x %}",
    "broken syntax": "{% for %}",
    "five thousand brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


def tokenizer() -> Any:
    model = tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), unk_token="[UNK]")


def findings(
    folder: Path, template: str, *, in_config: bool = False, has_tokenizer: bool = True
) -> list[tuple[str, str]]:
    if in_config:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    else:
        (folder / "chat_template.jinja").write_text(template)
    result, base = SmokeResult(), SimpleNamespace(tokenizer=tokenizer() if has_tokenizer else None, vocabulary=512)
    dialogue.examine(base, folder, result)  # type: ignore[arg-type]
    return [(finding.code, finding.severity) for finding in result.findings]


@pytest.mark.parametrize("in_config", [False, True])
@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_template_over_its_limits_fails(
    name: str, in_config: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialogue, "CPU_SECONDS", 1)
    assert findings(tmp_path, UNBOUNDED[name], in_config=in_config) == [("smoke.template_unbounded", "error")]


@pytest.mark.parametrize("in_config", [False, True])
@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_template_fails(name: str, in_config: bool, tmp_path: Path) -> None:
    assert findings(tmp_path, UNSAFE[name], in_config=in_config) == [("smoke.template_unsafe", "error")]


def test_a_named_template_is_bounded_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue, "CPU_SECONDS", 1)
    named = [{"name": "default", "template": GOOD}, {"name": "tools", "template": UNBOUNDED["ten billion rounds"]}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert findings(tmp_path, GOOD) == [("smoke.template_unbounded", "error")]


def test_honest_templates_pass_and_broken_ones_are_warned_about(tmp_path: Path) -> None:
    assert findings(tmp_path, GOOD) == []
    assert findings(tmp_path, "{{ raise_exception('no') }}") == [("smoke.template_failed", "warning")]
    assert findings(tmp_path, "{{ messages[0].content }}") == [("smoke.template_loses_text", "warning")]


def test_templates_for_a_base_without_a_tokenizer_are_rendered_with_the_adapters_own_tokens(tmp_path: Path) -> None:
    assert findings(tmp_path, GOOD, has_tokenizer=False) == []
    assert findings(tmp_path, "{{ bos_token + eos_token }}" + GOOD, has_tokenizer=False) == []
    assert findings(tmp_path, "{{ messages[0].content }}", has_tokenizer=False) == [
        ("smoke.template_loses_text", "warning")
    ]
    (tmp_path / "chat_template.jinja").unlink()
    settings = {"bos_token": {"content": dialogue.WORDS[0]}, "eos_token": dialogue.WORDS[1]}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ bos_token ~ eos_token }}"} | settings)
    )
    result = SmokeResult()
    dialogue.examine(SimpleNamespace(tokenizer=None, vocabulary=512), tmp_path, result)  # type: ignore[arg-type]
    assert result.findings == []


@pytest.mark.parametrize("owner", ["base", "adapter"])
def test_a_template_that_never_ends_is_a_failing_verdict_of_one_attempt(
    owner: str, pool: Pool, base_folder: Path, good: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(base_folder, tmp_path / "base")
    endless = shutil.copytree(good, tmp_path / "endless")
    tokenizer().save_pretrained(base if owner == "base" else endless)
    (endless / "chat_template.jinja").write_text(UNBOUNDED["ten billion rounds"])
    source, limits = BaseSource(f"tokenizer of the {owner}", base, ""), ProcessLimits(deadline_seconds=120, threads=1)
    for limit in (limits, replace(limits, isolate=True)):
        response = pool.try_adapter(source, endless, limit)
        codes = {finding["code"]: finding["severity"] for finding in response["result"]["findings"]}
        assert codes == {"smoke.template_unbounded": "error"}
