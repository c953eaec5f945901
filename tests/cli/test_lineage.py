"""Declared inputs by command, from push to export: what is shown, drawn, found again, and valid for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from registry import attestations
from registry.attestations.keys import PrivateKey
from registry.digest import Digest
from tests.cli.runner import CommandRunner
from tests.import_table import ROOT

DATA = Digest.of(b"tickets")
COMMIT = "9c4f" * 10
TRAINED = (ROOT / "tests/domain/trainer_state.json").read_bytes()
CARD = b"---\nbase_model: tiny-llama\ndatasets:\n- acme/chats\n---\n### Framework versions\n\n- TRL: 0.24.0\n"


@pytest.fixture
def declared_cli(cli: CommandRunner, tmp_path: Path) -> CommandRunner:
    """acme/support@1 with all inputs declared, and @2, continued from it."""
    cli.add_base()
    folder = cli.make_adapter("first")
    (folder / "README.md").write_bytes(CARD)
    (folder / "trainer_state.json").write_bytes(TRAINED)
    file = tmp_path / "origin.toml"
    file.write_text('[run]\ntool = "wandb"\nid = "old"\n[parameters]\nlearning_rate = 2e-4\nepochs = 3\n')
    cli(
        "push", folder, "acme/support", "--base", "tiny-llama", "--provenance", file,
        "--dataset", f"tickets=s3://data/tickets.jsonl@{DATA}", "--run", "mlflow:4f1c=https://mlflow.example.org/4f1c",
        "--commit", f"https://git.example.org/acme/train@{COMMIT}", "--param", "epochs=5",
    )  # fmt: skip
    cli.push("acme/support", "--parent", "acme/support@1")
    return cli


def test_declared_inputs_are_shown_drawn_and_found(declared_cli: CommandRunner) -> None:
    declared = declared_cli("show", "acme/support@1", "--json").json["provenance"]
    assert declared["parameters"] == {"learning_rate": "0.0002", "epochs": "5"}
    assert declared["run"] == {"tool": "mlflow", "id": "4f1c", "url": "https://mlflow.example.org/4f1c"}
    shown = declared_cli("show", "acme/support@1").stdout
    for word in ("tickets", "acme/chats", "mlflow 4f1c", COMMIT, "learning_rate=0.0002", "trl 0.24.0"):
        assert word in shown
    trained = (
        "(its trainer_state.json) 12 of 12 steps, 1.5 epochs, batches of 4; loss 6.244 → 6.269, evaluation loss 6.262; "
    )
    assert trained + "best 6.262 at step 12" in " ".join(shown.split())
    assert "customer-x" not in declared_cli("show", "acme/support@1", "--json").stdout
    first, second = (declared_cli("show", f"acme/support@{n}", "--json").json["digest"][7:19] for n in (1, 2))
    assert declared_cli("lineage", "acme/support").stdout.splitlines() == [
        f"acme/support@2  {second}",
        f"├─ continued acme/support@1  {first}",
        "│  ├─ on tiny-llama (base)",
        "│  ├─ trained on (its README says) acme/chats  hf://datasets/acme/chats",
        f"│  ├─ trained on tickets  {DATA.short}  s3://data/tickets.jsonl",
        "│  ├─ run mlflow 4f1c  https://mlflow.example.org/4f1c",
        "│  └─ by code train@9c4f9c4f9c4f  https://git.example.org/acme/train",
        "└─ on tiny-llama (base)",
    ]
    result = declared_cli("lineage", "--dataset", DATA).stdout.splitlines()
    assert [line.partition("  ")[0] for line in result[1:]] == ["└─ trained on acme/support@1", ""]
    assert "continued acme/support@2" in result[2]
    assert "acme/support@2" in declared_cli("lineage", "--base", "tiny-llama").stdout


def test_many_adapters_each_declare_their_own_inputs(cli: CommandRunner) -> None:
    cli.add_base()
    for name in ("one", "two"):
        (cli.make_adapter(name) / "origin.json").write_text(json.dumps({"datasets": [{"uri": f"s3://data/{name}"}]}))
    pushed = cli("push-all", cli.folder / "adapters", "acme", "--provenance", "origin.json", "--json").json["items"]
    assert [item["pushed"]["version"]["provenance"]["datasets"][0]["uri"] for item in pushed] == [
        "s3://data/one", "s3://data/two",
    ]  # fmt: skip
    (cli.folder / "adapters" / "two" / "origin.json").unlink()
    cli("push-all", cli.folder / "adapters", "acme", "--provenance", "origin.json", expect=2)


def test_exports_are_valid_for_other_programs(declared_cli: CommandRunner, tmp_path: Path) -> None:
    # Here, because it builds grammars for seconds, which every test process would pay at collection.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator, bom = JsonStrictValidator(SchemaVersion.V1_6), tmp_path / "bom.json"
    declared_cli("lineage", "acme/support@1", "--as", "cyclonedx", "--out", bom)
    for ref in ("acme/support@1", "acme/support@2"):
        text = declared_cli("lineage", ref, "--as", "cyclonedx").stdout
        assert validator.validate_str(text) is None
    assert validator.validate_str(bom.read_text()) is None
    broken = json.loads(bom.read_text()) | {"components": [{"type": "adapter", "name": "x"}]}
    assert validator.validate_str(json.dumps(broken)) is not None
    event = declared_cli("lineage", "acme/support@1", "--as", "openlineage").json
    assert {dataset["name"] for dataset in event["inputs"]} == {"tickets.jsonl", "acme/chats", "tiny-llama"}
    assert event["run"]["facets"]["adapterRegistry_trainerState"]["claimed"]["steps"] == 12
    built = declared_cli("lineage", "acme/support@1", "--as", "slsa").json["predicate"]["buildDefinition"]
    assert built["internalParameters"]["trainer"]["best_metric"] == "6.26215"
    claimed = {
        prop["name"]: prop["value"] for prop in json.loads(bom.read_text())["metadata"]["component"]["properties"]
    }
    assert claimed["adapter-registry:claimed-training:epochs"] == "1.5"
    svg = declared_cli("lineage", "acme/support", "--as", "svg").stdout
    assert svg.startswith("<svg")


def test_a_signed_statement_is_an_envelope_of_it(declared_cli: CommandRunner, tmp_path: Path) -> None:
    created = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = tmp_path / "key.pem"
    key.write_bytes(created)
    plain = declared_cli("lineage", "acme/support@1", "--as", "slsa").json
    envelope = declared_cli("lineage", "acme/support@1", "--as", "slsa", "--signing-key", key).stdout.strip().encode()
    opened = attestations.verify_envelope(envelope, PrivateKey.parse(created).public)
    assert opened.predicate_type == plain["predicateType"]
    assert opened.predicate == plain["predicate"]
    assert opened.subjects["acme/support@1"] == declared_cli("show", "acme/support@1", "--json").json["digest"][7:]


def test_a_question_that_cannot_be_asked_is_refused_before_it_is(declared_cli: CommandRunner) -> None:
    for words in (
        ["lineage"],
        ["lineage", "acme/support", "--base", "tiny-llama"],
        ["lineage", "acme/support", "--down", "--as", "slsa"],
        ["lineage", "--dataset", DATA, "--as", "cyclonedx"],
        ["lineage", "acme/support", "--signing-key", "key.pem"],
        ["push", "nowhere", "acme/x", "--dataset", "s3://data"],
        ["push", "nowhere", "acme/x", "--param", "token=hf_" + "a" * 34],
        ["push", "nowhere", "acme/x", "--run", "MLflow:1"],
    ):
        declared_cli(*words, expect=2)
