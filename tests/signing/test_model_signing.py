"""The real model_signing signs an adapter that PEFT saved; pushed with its bundle, verified; and it reads what we sign.

Part of `make test-signing`.
"""

from __future__ import annotations

import json

import pytest

from tests.audit.certificates import PEM, SPKI
from tests.cli.runner import CommandRunner
from tests.signing import tool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not tool.is_wanted(), reason="no model_signing: make test-signing brings it"),
]


def test_a_bundle_of_model_signing_is_pushed_and_verified(cli: CommandRunner) -> None:
    from tests.signing import record, setup  # imports torch

    trained = record.adapter(cli.folder)
    cli("base", "add", "tiny", cli.folder / "tiny")
    signer = tool.Tool()
    for number, one in enumerate(setup.SigningSetup(cli.folder / "stand").signed(signer, trained)):
        name, given = f"acme/signed-{number}", ["--bundle", one.bundle]
        if one.public_key:
            public = cli.folder / f"{number}.pub"
            public.write_bytes(one.public_key)
            given += ["--public-key", public]
        cli("push", trained, name, "--base", "tiny", *given)
        trusted = cli.folder / f"{number}.root"
        trusted.write_bytes(one.root)
        demanded = ["--trusted-roots", trusted] if one.root else []
        told = cli("verify", name, *demanded, "--json").json
        (line,) = [line for line in told["signatures"] if line["kind"] in ("signature", "unverified")]
        assert (told["ok"], line["ok"]) == (True, True), (one.way, told)
        assert line["who"].startswith("pki:" if one.root else "key:")
        assert cli("verify", name, "--signed-by", line["who"], *demanded, expect=0 if one.public_key else 70)
    (trained / "README.md").write_text("other words")
    refused = cli("push", trained, "acme/other", "--base", "tiny", *given, "--json", expect=2).problem
    assert (refused["code"], "README.md" in refused["detail"]) == ("SIGNATURE_INVALID", True)


def test_model_signing_verifies_our_signatures(cli: CommandRunner) -> None:
    from tests.signing import record, setup  # imports torch

    trained = record.adapter(cli.folder)
    (trained / setup.LEFT_OUT).unlink()
    cli("base", "add", "tiny", cli.folder / "tiny")
    key, public = setup.SigningSetup(cli.folder / "stand").key("signer", setup.CURVES["p256"])
    pem = cli.folder / "signer.pub"
    pem.write_bytes(public.public_bytes(PEM, SPKI))
    cli("push", trained, "acme/ours", "--base", "tiny", "--sign", key)
    pulled, signature = cli.folder / "pulled", cli.folder / "ours.sig"
    cli("pull", "acme/ours", pulled)
    saved = cli.folder / "ours.bundle"
    cli("verify", "acme/ours", "--save", saved)
    kept = json.loads(saved.read_text())["attestations"]
    signature.write_text(next(one["bundle"] for one in kept if one["kind"] == "signature"))
    assert tool.Tool().verifies(pulled, pem, signature)
