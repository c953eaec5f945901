"""Declared inputs: what may be said of a version's origin, what is refused, and what changes a digest."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from registry import lineage
from registry.adapters import card
from registry.digest import Digest
from registry.errors import Invalid, RegistryError
from registry.strict import yaml as strict_yaml
from registry.versions.manifest import BaseRef, Descriptor, Manifest
from registry.versions.provenance import (
    Dataset,
    Provenance,
    parse_code,
    parse_dataset,
    parse_parameter,
    parse_provenance_file,
    parse_run,
)

D = Digest.of(b"data")
COMMIT = "9c4f" * 10
FULL: dict[str, Any] = {
    "datasets": [{"name": "tickets", "uri": "s3://data/tickets.jsonl", "digest": D}, {"uri": "hf://datasets/a/b"}],
    "run": {"tool": "mlflow", "id": "4f1c", "url": "https://mlflow.example.org/#/runs/4f1c"},
    "code": {"repository": "https://git.example.org/team/train", "commit": COMMIT},
    "parameters": {"lr": 2e-4, "epochs": 3, "packing": True, "note": "α = 2"},
}


def manifest(declared: Provenance | None = None) -> Manifest:
    file = Descriptor(path="a.safetensors", media_type="application/vnd.safetensors", digest=D, size_bytes=1)
    return Manifest.build(BaseRef(name="b", fingerprint=D), [file], provenance=declared)


def reasons(values: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        Provenance.read(values)
    assert caught.value.code == "PROVENANCE_INVALID"
    findings = caught.value.findings
    return [(reason.code.partition(".")[2], reason.location.removeprefix("provenance.")) for reason in findings]


def test_a_manifest_without_declared_inputs_is_the_bytes_that_it_always_was() -> None:
    plain = manifest()
    assert set(json.loads(plain.to_bytes())) == {
        "annotations", "base", "files", "media_type", "parents", "schema_version",
    }  # fmt: skip
    assert plain.digest == "sha256:2499c120bea233db4ae79d0d7a4952ddaffe43dac13e3fa940176f1bdc1cbf27"
    assert "provenance" not in plain.model_dump()
    assert Manifest.parse(plain.to_bytes()) == plain


def test_declared_inputs_are_a_part_of_what_the_version_is() -> None:
    declared = Provenance.read(FULL)
    assert declared is not None
    declaring = manifest(declared)
    assert Manifest.parse(declaring.to_bytes()) == declaring
    other = Provenance.read(FULL | {"parameters": {"lr": 3e-4}})
    assert len({manifest().digest, declaring.digest, manifest(other).digest}) == 3
    assert declared.parameters == {"lr": "0.0002", "epochs": "3", "packing": "true", "note": "α = 2"}


def test_nothing_declared_is_nothing() -> None:
    assert Provenance.read({}) is None
    assert Provenance.read({"datasets": [], "run": None, "parameters": {}}) is None
    with pytest.raises(Invalid, match="declares nothing"):
        Provenance()


@pytest.mark.parametrize(
    ("change", "rule", "location"),
    [
        ({"datasets": [{"name": "x"}]}, "dataset_unnamed", "datasets.0"),
        ({"datasets": [{"uri": "tickets.jsonl"}]}, "uri_invalid", "datasets.0.uri"),
        ({"datasets": [{"uri": "s3://a b"}]}, "uri_invalid", "datasets.0.uri"),
        ({"datasets": [{"uri": "s3://ä"}]}, "uri_invalid", "datasets.0.uri"),
        ({"datasets": [{"uri": "javascript://x/%0aalert(1)"}]}, "uri_invalid", "datasets.0.uri"),
        ({"datasets": [{"uri": "https://[x/"}]}, "uri_invalid", "datasets.0.uri"),
        ({"datasets": [{"uri": "s3://" + "a" * 1000}]}, "too_long", "datasets.0.uri"),
        ({"datasets": [{"uri": "https://me:pw@host/x"}]}, "secret", "datasets.0.uri"),
        ({"datasets": [{"uri": "https://token@host/x"}]}, "secret", "datasets.0.uri"),
        ({"datasets": [{"uri": "https://h/x?X-Amz-Signature=1"}]}, "secret", "datasets.0.uri"),
        ({"datasets": [{"uri": "https://h/x#access_token=1"}]}, "secret", "datasets.0.uri"),
        ({"datasets": [{"uri": "s3://a"}, {"uri": "s3://a", "name": "again"}]}, "duplicate", "datasets.1"),
        ({"datasets": [{"uri": f"s3://{n}"} for n in range(65)]}, "too_many", "datasets"),
        ({"datasets": [{"uri": "s3://a", "name": "x\ny"}]}, "text_invalid", "datasets.0.name"),
        ({"datasets": [{"uri": "s3://a", "name": "x" * 201}]}, "too_long", "datasets.0.name"),
        ({"datasets": [{"uri": "s3://a", "split": "a b"}]}, "text_invalid", "datasets.0.split"),
        ({"datasets": [{"uri": "s3://a", "digest": "md5:1"}]}, "invalid", "datasets.0.digest"),
        ({"datasets": [{"uri": "s3://a", "path": "x"}]}, "invalid", "datasets.0.path"),
        ({"datasets": "s3://a"}, "invalid", "datasets"),
        ({"run": {"tool": "ML Flow", "id": "1"}}, "text_invalid", "run.tool"),
        ({"run": {"tool": "wandb", "id": "-"}}, "text_invalid", "run.id"),
        ({"run": {"tool": "wandb", "id": "1", "url": "ftp://x/1"}}, "uri_invalid", "run.url"),
        ({"code": {"repository": "git@host:team/train", "commit": COMMIT}}, "uri_invalid", "code.repository"),
        ({"code": {"repository": "https://h/x", "commit": "main"}}, "text_invalid", "code.commit"),
        ({"parameters": {"a b": "1"}}, "text_invalid", "parameters.a b"),
        ({"parameters": {"a": "x" * 501}}, "too_long", "parameters.a"),
        ({"parameters": {"a": None}}, "invalid", "parameters.a"),
        ({"parameters": {"a": {"b": 1}}}, "invalid", "parameters.a"),
        ({"parameters": {"hub": "hf_" + "a" * 34}}, "secret", "parameters.hub"),
        ({"parameters": {str(n): "1" for n in range(201)}}, "too_many", "parameters"),
        ({"model": "x"}, "invalid", "model"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_field_and_rule(change: dict[str, Any], rule: str, location: str) -> None:
    assert (rule, location) in reasons(change)


def test_every_broken_rule_is_reported_at_once_within_a_limit() -> None:
    assert len(reasons({"run": {"tool": "X", "id": ""}, "code": {"repository": "x", "commit": "y"}})) == 4
    with pytest.raises(RegistryError, match=r"over the limit of 65536"):
        Provenance.read({"parameters": {str(n): "x" * 500 for n in range(200)}})


def test_what_the_command_line_says_in_short() -> None:
    assert parse_dataset(f"t=s3://a/b=c@{D}") == {"name": "t", "uri": "s3://a/b=c", "digest": D}
    assert parse_dataset("t=hf://datasets/a/b@main") == {"name": "t", "uri": "hf://datasets/a/b@main"}
    assert parse_dataset(f"t={D}") == {"name": "t", "uri": "", "digest": D}
    assert parse_run("wandb:team/p/1=https://w/1") == {"tool": "wandb", "id": "team/p/1", "url": "https://w/1"}
    assert parse_code(f"ssh://git@h/x@{COMMIT}") == {"repository": "ssh://git@h/x", "commit": COMMIT}
    assert parse_parameter("a=b=c") == ("a", "b=c")
    for read, text in (
        (parse_dataset, "s3://a"), (parse_dataset, "s3://a?b=c"), (parse_run, "mlflow"),
        (parse_code, "main"), (parse_code, f"git@h:x@{COMMIT}"), (parse_parameter, "=1"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match="such as"):
            read(text)


def test_a_file_is_toml_by_its_name_and_strict_json_otherwise() -> None:
    toml = b'[[datasets]]\nuri = "s3://a"\n[parameters]\nlr = 2e-4\n'
    assert Provenance.read(parse_provenance_file(toml, file="p.toml")) == Provenance(
        datasets=(Dataset(uri="s3://a"),), parameters={"lr": "0.0002"}
    )
    for data, file in ((b"[", "p.toml"), (b'{"run": 1, "run": 2}', "p.json"), (b"[]", "p.json"), (b"\xff", "p.toml")):
        with pytest.raises(Invalid) as caught:
            parse_provenance_file(data, file=file)
        assert caught.value.code == "PROVENANCE_INVALID"
    with pytest.raises(Invalid, match="finite"):
        Provenance.read(parse_provenance_file(b"[parameters]\nlr = inf\n", file="p.toml"))


# ------------------------------------------------------------------ claims of the README
def test_a_readme_claims_data_sets_bases_and_tools() -> None:
    text = b"""---
base_model: "meta-llama/Llama-3.1-8B"
datasets:
- tatsu-lab/alpaca
- 'acme/tickets'
tags: [lora, sft]
---
# Title
### Framework versions

- PEFT 0.18.0
- TRL: 0.24.0
- Pytorch: 2.9.0+cu128

- not: 1
"""
    claims = card.read(text)
    assert claims.facts == {
        "datasets": ["tatsu-lab/alpaca", "acme/tickets"],
        "bases": ["meta-llama/Llama-3.1-8B"],
        "tools": {"peft": "0.18.0", "trl": "0.24.0", "pytorch": "2.9.0+cu128"},
        "labels": {"tags": ["lora", "sft"]},
    }
    assert card.read(text.replace(b"\n", b"\r\n")) == claims
    assert card.read(b"---\ndatasets: [a/b, 'c']\n---\n").datasets == ("a/b", "c")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"# none\ndatasets:\n- a/b\n", b"---\ndatasets: &a [*a]\n", b"---\ndatasets:\n  - {x: y}\n---\n",
        b"---\ndatasets: !!python/object:os.system x\n---\n", b"\xff\xfe---", b"---\n" + b"- " * 40_000,
        b"---\ndatasets:\n- ../../etc\n- <script>\n- " + b"a" * 200 + b"\n---\n",
        b"---\nbase: &a a/b\ndatasets:\n- *a\n---\n", b"---\ndatasets:\n- !!str a/b\n---\n",
        b"---\ndatasets: a/b\ndeep: " + b"[" * 21 + b"]" * 21 + b"\n---\n", b"---\n" + b"[" * 60_000 + b"\n---\n",
        b"---\ndatasets: a/b\n? [a]\n: b\n---\n", b"---\ndatasets: a/b\nx: 'open\n---\n",
        b"---\ndatasets: a/b\nmany:\n" + b"- x\n" * 10_000 + b"---\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("loader", [strict_yaml.LOADER, yaml.BaseLoader])
def test_what_cannot_be_read_claims_nothing(text: bytes, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "LOADER", loader)
    assert card.read(text).facts == {}


def test_claims_have_limits() -> None:
    many = b"---\ndatasets:\n" + b"".join(b"- a/%d\n" % n for n in range(1000)) + b"---\n"
    assert len(card.read(many).datasets) == 32


def test_inputs_are_nodes_and_what_is_declared_is_no_claim() -> None:
    declared = Provenance.read(FULL)
    inputs = list(lineage.inputs(declared, {"card": {"datasets": ["a/b", "c/d"]}}))
    assert [(item.relation, item.node) for item in inputs] == [
        ("dataset", f"dataset:{D}"),
        ("dataset", "dataset:hf://datasets/a/b"),
        ("claimed", "dataset:hf://datasets/c/d"),
        ("run", "run:mlflow:4f1c"),
        ("code", f"code:https://git.example.org/team/train@{COMMIT}"),
    ]
    assert [lineage.kind_of(item.node) for item in inputs] == ["dataset", "dataset", "dataset", "run", "code"]
    assert lineage.kind_of(D) == "version"
    assert list(lineage.inputs(None, {})) == []
