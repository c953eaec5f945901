"""What an adapter says of its base, its tokenizer and its template, against the base that it is pushed for."""

from __future__ import annotations

import json

import pytest

from registry.adapters.peft.config import BaseClaim
from registry.bases import BaseMatch, BaseSpec, Similarity
from registry.bases.fingerprints import tokenizer_fingerprint
from registry.compat import base_match, tokenizers
from registry.compat.catalog import CompatFindings
from registry.digest import Digest
from registry.findings import Finding
from registry.versions.manifest import Descriptor
from tests import samples
from tests.domain.specs import base_spec

BASE = base_spec(samples.llama(name="acme/llama"))
TOKENIZER = b'{"model": {"vocab": {"a": 0}}, "padding": null}'


def claimed(
    name: str, *relatives: tuple[str, BaseMatch], base: BaseSpec = BASE, is_local: bool = False
) -> tuple[str, str] | None:
    findings = CompatFindings()
    alike = [Similarity(other=other, match=match) for other, match in relatives]
    base_match.check_claim(BaseClaim(name=name, is_local=is_local), base, alike, findings)
    reported = findings.all()
    assert len(reported) <= 1
    return (reported[0].severity, reported[0].code) if reported else None


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (BaseMatch.EXACT, ("info", "compat.base_same_weights")),
        (BaseMatch.OTHER_DTYPE, ("info", "compat.base_same_weights")),
        (BaseMatch.QUANTIZED, ("warning", "compat.base_quantized_variant")),
        (BaseMatch.DESCENDANT, ("warning", "compat.base_descendant")),
        (BaseMatch.UNRELATED, ("error", "compat.base_unrelated")),
        (BaseMatch.UNKNOWN, ("warning", "compat.base_named_differently")),
    ],
)
def test_an_adapter_of_another_registered_base_is_evaluated_by_the_match(
    match: BaseMatch, expected: tuple[str, str]
) -> None:
    assert claimed("org/other", ("org/other", match)) == expected
    assert claimed("org/other", ("other", match)) == (expected if expected[0] != "error" else
                                                      ("warning", "compat.base_named_differently"))  # fmt: skip


@pytest.mark.security
@pytest.mark.parametrize("match", list(BaseMatch))
def test_a_base_of_another_organization_never_stands_for_the_claimed_one(match: BaseMatch) -> None:
    assert claimed("org/other", ("evil/other", match)) == ("warning", "compat.base_named_differently")
    assert claimed("org/other-bnb-4bit", ("evil/other-bnb-4bit", match)) == ("warning", "compat.trained_on_packed")


def test_an_adapter_of_this_base_says_nothing_and_of_an_unknown_one_a_warning() -> None:
    assert claimed("acme/llama") is claimed("llama") is claimed("other-org/llama") is claimed("") is None
    assert claimed("org/unheard-of") == ("warning", "compat.base_named_differently")


def test_a_base_of_the_same_last_name_is_not_taken_for_this_one_when_it_is_registered() -> None:
    assert claimed("org/llama", ("org/llama", BaseMatch.UNRELATED)) == ("error", "compat.base_unrelated")
    assert claimed("llama", ("org/llama", BaseMatch.UNRELATED)) is None


def test_a_folder_of_the_trainer_with_the_name_of_an_unrelated_base_is_only_a_warning() -> None:
    finding = claimed("other", ("other", BaseMatch.UNRELATED), is_local=True)
    assert finding == ("warning", "compat.base_named_differently")


@pytest.mark.parametrize(
    "name", ["unsloth/llama-bnb-4bit", "org/Llama-GPTQ-Int4", "x/llama.w4a16", "llama-AWQ", "org/llama_nf4", "a/b-FP8"]
)
def test_an_adapter_of_a_packed_copy_is_not_passed_off_as_made_for_the_plain_base(name: str) -> None:
    assert claimed(name) == ("warning", "compat.trained_on_packed")
    packed = BASE.model_copy(update={"quantization": "bitsandbytes"})
    assert claimed(name, base=packed) != ("warning", "compat.trained_on_packed")


@pytest.mark.parametrize("name", ["org/Qwen2.5-14B", "org/bitnet-b1.58-2B", "org/awqward", "org/model-v4"])
def test_names_that_only_look_like_a_packing_are_none(name: str) -> None:
    assert claimed(name) == ("warning", "compat.base_named_differently")


# ------------------------------------------------------------------ tokenizer and template
def companion_findings(base: BaseSpec, **files: bytes) -> list[Finding]:
    paths = {"tokenizer": "tokenizer.json", "config": "tokenizer_config.json", "template": "chat_template.jinja"}
    by_path = {paths[name]: data for name, data in files.items()}
    described = [
        Descriptor(path=path, media_type="application/json", digest=Digest.of(data), size_bytes=len(data))
        for path, data in by_path.items()
    ]
    return tokenizers.check_tokenizer(described, lambda path, at, n: by_path[path][at : at + n], base)


def with_prints(template: str | None = "{{ x }}") -> BaseSpec:
    prints = {
        "tokenizer": tokenizer_fingerprint(TOKENIZER),
        "template": Digest.of(template.encode()) if template else None,
    }
    return BASE.model_copy(update={"fingerprints": BASE.fingerprints.model_copy(update=prints)})


def test_the_bases_own_tokenizer_and_template_are_no_finding() -> None:
    used = json.dumps(json.loads(TOKENIZER) | {"padding": {"length": 8}, "truncation": {"max_length": 4}}).encode()
    in_config = json.dumps({"chat_template": "{{ x }}\r\n"}).encode()
    assert companion_findings(with_prints(), tokenizer=used, template=b"{{ x }}\n") == []
    assert companion_findings(with_prints(), config=in_config) == []
    assert companion_findings(with_prints(), config=b'{"chat_template": "old"}', template=b"{{ x }}") == []
    assert companion_findings(with_prints()) == []


def test_tokenizer_and_template_are_reported_separately() -> None:
    other = b'{"model": {"vocab": {"b": 0}}}'
    assert [f.code for f in companion_findings(with_prints(), tokenizer=other)] == ["compat.tokenizer_differs"]
    companions = companion_findings(with_prints(), tokenizer=TOKENIZER, template=b"{{ y }}")
    assert [(f.severity, f.code, f.location) for f in companions] == [
        ("warning", "compat.template_differs", "chat_template.jinja")
    ]
    assert [f.code for f in companion_findings(with_prints(None), template=b"{{ y }}")] == ["compat.template_added"]


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 200_000, b"\xff\xfe"])
def test_a_tokenizer_that_is_none_is_a_warning(data: bytes) -> None:
    assert [f.code for f in companion_findings(with_prints(), tokenizer=data)] == ["compat.tokenizer_unreadable"]


def test_a_tokenizer_over_the_limit_is_not_read() -> None:
    large = Descriptor(
        path="tokenizer.json", media_type="application/json", digest=Digest.of(b""),
        size_bytes=tokenizers.TOKENIZER_LIMIT_BYTES + 1,
    )  # fmt: skip
    reported = tokenizers.check_tokenizer([large], lambda *_: pytest.fail("it was read"), with_prints())
    assert [(f.severity, f.code) for f in reported] == [("info", "compat.tokenizer_not_compared")]


@pytest.mark.security
def test_a_tokenizer_of_too_many_values_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "tokenizer_fingerprint", lambda _: pytest.fail("it was parsed"))
    data = b'{"a": [' + b"[]," * tokenizers.TOKENIZER_VALUES_LIMIT + b"1]}"
    (reported,) = companion_findings(with_prints(), tokenizer=data)
    assert (reported.severity, reported.code) == ("info", "compat.tokenizer_not_compared")


@pytest.mark.parametrize("config", [b"", b"[]", b"nonsense", b'{"chat_template": 7}', b'{"chat_template": "\\ud800"}'])
def test_an_odd_tokenizer_configuration_breaks_nothing(config: bytes) -> None:
    assert all(finding.severity != "error" for finding in companion_findings(with_prints(), config=config))
