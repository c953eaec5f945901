"""Attack: tokenizer files, trainer logs and chat templates that make a loader run code, read files or never end."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from registry.adapters import companions, templates
from registry.adapters.companions import check_token_files
from registry.client.local.adapter_folder import read_adapter
from registry.errors import Invalid
from tests import non_peft_files, samples
from tests.bad_inputs.raw_push import RawClient, assert_refused
from tests.harness import Harness

pytestmark = pytest.mark.security

AUTO_MAP = {"auto_map": {"AutoTokenizer": ["evil/repository--module.Tokenizer", None]}}
COMPANIONS: dict[str, tuple[str, bytes, str]] = {
    "auto_map in a tokenizer": ("tokenizer_config.json", json.dumps(AUTO_MAP).encode(), "config.code_reference"),
    "trust_remote_code at depth": (
        "tokenizer_config.json", b'{"a": [{"b": {"trust_remote_code": true}}]}', "config.code_reference"),
    "in a folder": ("tok/tokenizer_config.json", json.dumps(AUTO_MAP).encode(), "config.code_reference"),
    "in special tokens": ("special_tokens_map.json", json.dumps(AUTO_MAP).encode(), "config.code_reference"),
    "in a trainer's log": ("trainer_state.json", json.dumps({"args": AUTO_MAP}).encode(), "config.code_reference"),
    "in a fast tokenizer": (
        "tokenizer.json", json.dumps({"model": {"vocab": {"a": 1}}} | AUTO_MAP).encode(), "config.code_reference"),
    "at depth, escaped and spaced": (
        "tokenizer.json", b'{"model": [{"\\u0061uto\\u005Fm\\u0061p" \n : []}]}', "config.code_reference"),
    "in UTF-16": ("tokenizer.json", json.dumps(AUTO_MAP).encode("utf-16"), "config.invalid"),
    "in a vocabulary": ("vocab.json", b'{"a": 1, "trust_remote_code": true}', "config.code_reference"),
    "in added tokens": ("added_tokens.json", json.dumps(AUTO_MAP).encode(), "config.value_invalid"),
    "a key twice": ("tokenizer_config.json", b'{"a": 1, "a": 2}', "config.duplicate_key"),
    "NaN": ("tokenizer_config.json", b'{"model_max_length": NaN}', "config.not_finite"),
    "no JSON": ("tokenizer_config.json", b"import os", "config.invalid"),
    "a list": ("special_tokens_map.json", b"[]", "config.invalid"),
    "a pickle as special tokens": ("special_tokens_map.json", pickle.dumps({"a": 1}), "config.invalid"),
    "a pickle as a tokenizer": ("tokenizer.model", pickle.dumps({"a": 1}), "file.tokenizer_refused"),
    "an old pickle as a tokenizer": ("tokenizer.model", pickle.dumps({"a": 1}, 0), "file.tokenizer_refused"),
    "a million values": ("trainer_state.json", b'{"a": [' + b"[]," * 700_000 + b"[]]}", "config.too_large"),
}  # fmt: skip

NESTED_CONFIGS = {
    "auto_map": json.dumps(AUTO_MAP).encode(),
    "megatron_core": b'{"peft_type": "LORA", "megatron_core": "os"}',
    "a parent library": b'{"auto_mapping": {"base_model_class": "A", "parent_library": "evil"}}',
    "a pickle": pickle.dumps({"a": 1}),
    "nothing wrong": b"{}",
}
TRAINING_ARGUMENTS = {
    "a tag": b"a: !!python/object/apply:os.system [id]\n",
    "a long tag": b"a: !<tag:yaml.org,2002:python/object/apply:os.system> [id]\n",
    "a tag by a handle": b"%TAG !p! tag:yaml.org,2002:pyth\n---\na: !p!on/object/apply:os.system [id]\n",
    "an encoded tag": b"a: !!pyth%6Fn/object/apply:os.system [id]\n",
    "a tag in UTF-16": "\ufeffa: !!python/object/apply:os.system [id]\n".encode("utf-16-le"),
    "a second document": b"a: 1\n---\n!!python/name:os.system ''\n",
    "a pickle": pickle.dumps({"a": 1}),
    "deep": b"a: " + b"[" * 100_000,
    "many values": b"- x\n" * 100_000,
}

TEMPLATES: dict[str, tuple[str, str]] = {
    "broken syntax": ("{% if %}", "template.invalid"),
    "an unclosed block": ("{% for a in b %}", "template.invalid"),
    "include": ("{% include '/etc/passwd' %}", "template.unsafe"),
    "import": ("{% import 'x' as y %}", "template.unsafe"),
    "from import": ("{% from 'x' import y %}", "template.unsafe"),
    "extends": ("{% extends 'x' %}", "template.unsafe"),
    "a dunder": ("{{ messages.__class__ }}", "template.unsafe"),
    "a dunder as a key": ("{{ messages['__class__'] }}", "template.unsafe"),
    "a dunder in a branch": ("{% if false %}{{ [x.__init__.__globals__ for_ in y] }}{% endif %}", "template.invalid"),
    "a dunder in a default": ("{% macro m(a=''.__class__) %}{% endmacro %}", "template.unsafe"),
    "the filter attr": ("{{ messages | attr('__cla' ~ 'ss__') }}", "template.unsafe"),
    "map with attr": ("{{ messages | map('attr', 'x') | list }}", "template.unsafe"),
    "map by attribute": ("{{ messages | map(attribute='role.__class__') | list }}", "template.unsafe"),
    "map by a computed attribute": ("{{ messages | map(attribute=messages[0].role) | list }}", "template.unsafe"),
    "map with a computed filter": ("{{ messages | map(messages[0].role) | list }}", "template.unsafe"),
    "sort by attribute": ("{{ messages | sort(false, false, '__class__') }}", "template.unsafe"),
    "spread arguments": ("{{ messages | map(**messages[0]) }}", "template.unsafe"),
    "format": ("{{ '{0.__class__}'.format(messages) }}", "template.unsafe"),
    "format by key": ("{{ '{0.__class__}'['format'](messages) }}", "template.unsafe"),
    "the filter format": ("{{ '%1000000000d' | format(1) }}", "template.unsafe"),
    "5,000 brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "template.too_deep"),
    "5,000 additions": ("{{ " + "+".join("1" * 5000) + " }}", "template.too_deep"),
    "5,000 digits": ("{{ " + "9" * 5000 + " }}", "template.too_deep"),
    "13,000 expressions": ("{{a}}" * 13_000, "template.too_deep"),
    "over 64 KiB": ("a" * (2**16 + 1), "template.too_large"),
}

GOOD = """{{- bos_token }}{%- set ns = namespace(found=false) %}
{%- if tools is defined and tools %}{{ tools | map('tojson', indent=4) | join('\\n\\n') }}{% endif %}
{%- for message in messages if message['role'] != 'system' %}
{%- if loop.index0 > 99 %}{% break %}{% endif %}
{{ '<|im_start|>' + message.role + '\\n' ~ message.content | trim }}
{%- generation %}{{ message['content'].split('</think>')[-1].lstrip('\\n') }}{% endgeneration %}
{%- endfor %}{{ messages | selectattr('role', 'equalto', 'tool') | list | length }}
{%- macro render(a, b={}) %}{{ a | default(b.get('x'), true) }}{% endmacro %}{{ render(messages[-1]) }}
{%- if add_generation_prompt %}{{ raise_exception('no') if not messages else strftime_now('%d %b %Y') }}{% endif %}"""


@pytest.mark.parametrize("name", COMPANIONS)
def test_an_unsafe_companion_is_refused_at_push(refusing: RawClient, name: str) -> None:
    path, data, reason = COMPANIONS[name]
    response = refusing.push({**refusing.harness.files(), path: data})
    codes = ["CONFIG_INVALID", "FILE_REFUSED", "SIZE_INVALID"]
    status = 413 if reason.endswith("too_large") else 415 if reason.startswith("file.") else 422
    assert_refused(refusing.harness, response, status, codes, reason)
    assert path in response.json()["detail"]


@pytest.mark.parametrize("name", NESTED_CONFIGS)
def test_a_configuration_in_a_folder_is_refused(refusing: RawClient, name: str) -> None:
    files = refusing.harness.files()
    for path in (f"sub/{samples.CONFIG}", f"a/b/{samples.CONFIG}"):
        response = refusing.push({**files, path: NESTED_CONFIGS[name]})
        assert_refused(refusing.harness, response, 415, ["FILE_REFUSED"], "file.nested_config")
        assert path in response.json()["detail"]


@pytest.mark.parametrize("path", ["extra.gguf", "sub/extra.gguf"])
@pytest.mark.parametrize("data", [pickle.dumps({"a": 1}), b"GGU", b""], ids=["a pickle", "cut off", "empty"])
def test_a_second_weights_file_that_is_no_gguf_is_refused(refusing: RawClient, path: str, data: bytes) -> None:
    response = refusing.push({**refusing.harness.files(), path: data})
    assert_refused(refusing.harness, response, 422, ["TENSORS_INVALID"])
    assert path in response.json()["detail"]


@pytest.mark.parametrize("path", ["training_args.yaml", "sub/training_args.yaml"])
@pytest.mark.parametrize("name", TRAINING_ARGUMENTS)
def test_yaml_that_is_not_plain_is_refused(refusing: RawClient, name: str, path: str) -> None:
    response = refusing.push({**refusing.harness.files(), path: TRAINING_ARGUMENTS[name]})
    assert_refused(refusing.harness, response, 422, ["CONFIG_INVALID"], "config.yaml_refused")
    assert path in response.json()["detail"]


def test_plain_training_arguments_and_a_second_gguf_are_accepted(harness: Harness) -> None:
    harness.add_base()
    arguments = b"a: &a [q_proj, v_proj]\nb: *a\nlearning_rate: 1.0e-4\nnone: null\ntext: 'x: !!python/name:y'\n"
    files = {**harness.files(), "training_args.yaml": arguments, **non_peft_files.gguf_adapter(samples.llama())}
    response = RawClient(harness).push(files)
    assert response.json().get("created"), response.text


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_unsafe_template_is_refused_at_push_wherever_it_stands(refusing: RawClient, name: str) -> None:
    text, reason = TEMPLATES[name]
    places: tuple[tuple[str, Any], ...] = (
        ("chat_template.jinja", None), ("tokenizer_config.json", text),
        ("tokenizer_config.json", [{"name": "default", "template": "a"}, {"name": "tool_use", "template": text}]),
        ("tokenizer_config.json", {"tool_use": text}),
    )  # fmt: skip
    for path, value in places:
        data = text.encode() if value is None else json.dumps({"chat_template": value}).encode()
        response = refusing.push({**refusing.harness.files(), path: data})
        if path == "chat_template.jinja" and reason == "template.too_large":
            assert_refused(refusing.harness, response, 413, ["SIZE_INVALID"], "file.too_large")
        else:
            assert_refused(refusing.harness, response, 422, ["CONFIG_INVALID"], reason)
        assert path in response.json()["detail"]


@pytest.mark.parametrize("value", [7, [1], [{"name": "a"}], {"a": 1}, ["text"]], ids=str)
def test_a_template_of_another_type_is_refused(refusing: RawClient, value: Any) -> None:
    data = json.dumps({"chat_template": value}).encode()
    response = refusing.push({**refusing.harness.files(), "tokenizer_config.json": data})
    assert_refused(refusing.harness, response, 422, ["CONFIG_INVALID"], "template.invalid")


def test_many_templates_and_many_files_have_a_limit_together(refusing: RawClient) -> None:
    files = refusing.harness.files()
    for number in range(5):
        files[f"{number}/chat_template.jinja"] = b"a" * (60_000 - number)
    assert_refused(refusing.harness, refusing.push(files), 422, ["CONFIG_INVALID"], "template.too_large")
    log = b'{"a": "' + b"x" * (6 * 2**20) + b'"}'
    files = refusing.harness.files() | {f"{number}/trainer_state.json": log for number in range(3)}
    assert_refused(refusing.harness, refusing.push(files), 413, ["SIZE_INVALID"], "config.too_large")


def test_a_code_reference_beside_another_tools_weights_is_refused(refusing: RawClient) -> None:
    files = {"style.safetensors": non_peft_files.kohya(), samples.CONFIG: json.dumps(AUTO_MAP).encode()}
    assert_refused(refusing.harness, refusing.push(files), 422, ["CONFIG_INVALID"], "config.code_reference")


def test_the_client_refuses_before_it_sends(tmp_path: Path) -> None:
    samples.write({**samples.lora(samples.llama()), "tokenizer_config.json": json.dumps(AUTO_MAP).encode()}, tmp_path)
    with pytest.raises(Invalid, match=r"tokenizer_config.json: auto_map makes a loader import code"):
        read_adapter(tmp_path)


def test_code_references_are_found_between_pieces_and_tokens_may_have_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(data: bytes) -> None:
        check_token_files({"tokenizer.json": len(data)}, lambda _path, start, length: data[start : start + length])

    monkeypatch.setattr(companions, "_PIECE_BYTES", 300)
    check(b'{"model": {"vocab": {"auto_map": 5, "trust_remote_code": 6}, "merges": ["auto_map", "a b"]}}')
    for before in range(200, 320):
        with pytest.raises(Invalid, match=r"tokenizer\.json: auto_map makes a loader import code"):
            check(b'{"' + b"a" * before + b'": 1, "auto_map"' + b" " * 1000 + b": " + b" " * 1000 + b"{}}")


def test_what_real_templates_use_is_accepted() -> None:
    templates.check_template("chat_template.jinja", GOOD)


CARDS = {
    "no end": b"---\ndatasets: [a]\n",
    "no YAML": b"---\na: [\n---\n",
    "a list": b"---\n- a\n---\n",
    "a YAML bomb": b"---\na: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n---\n",
    "a tag": b"---\na: !!python/object/apply:os.system [id]\n---\n",
    "deep": b"---\na: " + b"[" * 50 + b"]" * 50 + b"\n---\n",
    "no UTF-8": b"---\na: \xff\n---\n",
}


@pytest.mark.parametrize("name", [*CARDS, "good", "none"])
def test_a_card_with_bad_front_matter_is_a_warning(harness: Harness, name: str) -> None:
    harness.add_base()
    card = CARDS.get(name) or {"good": b"---\ndatasets:\n- a/b\n---\n# Hi\n", "none": b"# Hi\n---\n"}[name]
    response = RawClient(harness).push({**harness.files(), "README.md": card})
    assert response.json().get("created"), response.text
    findings = [finding["code"] for finding in response.json()["version"]["verdicts"][0]["findings"]]
    assert findings == (["card.front_matter_invalid"] if name in CARDS else [])
