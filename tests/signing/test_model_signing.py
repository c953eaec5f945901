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
    for number, signed in enumerate(setup.SigningSetup(cli.folder / "stand").signed(signer, trained)):
        name, options = f"acme/signed-{number}", ["--bundle", signed.bundle]
        if signed.public_key:
            public = cli.folder / f"{number}.pub"
            public.write_bytes(signed.public_key)
            options += ["--public-key", public]
        cli("push", trained, name, "--base", "tiny", *options)
        trusted = cli.folder / f"{number}.root"
        trusted.write_bytes(signed.root)
        demanded = ["--trusted-roots", trusted] if signed.root else []
        verified = cli("verify", name, *demanded, "--json").json
        (line,) = [line for line in verified["signatures"] if line["kind"] in ("signature", "unverified")]
        assert (verified["ok"], line["ok"]) == (True, True), (signed.way, verified)
        assert line["who"].startswith("pki:" if signed.root else "key:")
        assert cli("verify", name, "--signed-by", line["who"], *demanded, expect=0 if signed.public_key else 70)
    (trained / "README.md").write_text("other words")
    refused = cli("push", trained, "acme/other", "--base", "tiny", *options, "--json", expect=2).problem
    assert (refused["code"], "README.md" in refused["detail"]) == ("SIGNATURE_INVALID", True)


def test_model_signing_verifies_our_signatures(cli: CommandRunner) -> None:
    from tests.signing import record, setup  # imports torch

    trained = record.adapter(cli.folder)
    (trained / setup.LEFT_OUT).unlink()
    cli("base", "add", "tiny", cli.folder / "tiny")
    key, public = setup.SigningSetup(cli.folder / "stand").key("signer", setup.CURVES["p256"])
    pem = cli.folder / "signer.pub"
    pem.write_bytes(public.public_bytes(PEM, SPKI))
    cli("push", trained, "acme/ours", "--base", "tiny", "--signing-key", key)
    pulled, signature = cli.folder / "pulled", cli.folder / "ours.sig"
    cli("pull", "acme/ours", pulled)
    saved = cli.folder / "ours.bundle"
    cli("verify", "acme/ours", "--out", saved)
    attestations = json.loads(saved.read_text())["attestations"]
    signature.write_text(
        next(attestation["bundle"] for attestation in attestations if attestation["kind"] == "signature")
    )
    assert tool.Tool().verifies(pulled, pem, signature)
