"""Sigstore's own client and our reader agree about keyless signatures, good ones and changed ones.

Part of `make test-signing`.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.attestations import models
from registry.attestations.certificates import Trust
from registry.digest import Digest
from registry.errors import Invalid
from registry.versions.manifest import BaseRef, Descriptor, Manifest
from tests.audit.certificates import NOW, Authority, Sigstore
from tests.signing import tool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not tool.is_wanted(), reason="no model_signing: make test-signing brings it"),
]
CHANGES = 2000
UNSIGNED = {"mediaType", "kind", "version", "envelope"}
"""Labels that nobody signs, and that Sigstore's client reads and ours does not: what kind of bundle and of entry it is
(ours reads the entry itself), and the key's name on the signature of a checkpoint."""
WEIGHTS = Descriptor(
    path="adapter_model.safetensors", media_type="application/vnd.safetensors", digest=Digest.of(b"w"), size_bytes=1
)
MANIFEST = Manifest.build(BaseRef(name="base", fingerprint=Digest.of(b"base")), [WEIGHTS], ())


def is_accepted(bundle: str, trusted_root: bytes) -> bool:
    try:
        return bool(models.verify_with_certificate(bundle, MANIFEST, Trust.parse([trusted_root]), NOW).identity)
    except Invalid:
        return False


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every string in the bundle that is not empty."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))
    if isinstance(value, str) and value:
        yield path


def decoded(text: str) -> bytearray:
    """The bytes of a base64 string; empty for another string."""
    try:
        return bytearray(base64.b64decode(text, validate=True))
    except ValueError:
        return bytearray()


def changed(bundle: dict[str, Any], source: random.Random) -> tuple[str, str]:
    """The name of one string of the bundle, and the bundle without it or with one byte of it changed."""
    copy = json.loads(json.dumps(bundle))
    *above, last = source.choice(list(leaves(copy)))
    holder = copy
    for key in above:
        holder = holder[key]
    text = holder[last]
    if source.random() < 0.1:
        del holder[last]
    elif (data := decoded(text)) and source.random() < 0.8:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        holder[last] = base64.b64encode(data).decode()
    else:
        at = source.randrange(len(text))
        holder[last] = text[:at] + source.choice("0aZ ") + text[at + 1 :]
    return str(last), json.dumps(copy)


def test_both_accept_a_good_signature_and_refuse_one_without_a_part(tmp_path: Path) -> None:
    sigstore, other = Sigstore(), Sigstore()
    other.authority = Authority("another")
    bundles = {
        "good": sigstore.bundle(MANIFEST),
        "late": sigstore.bundle(MANIFEST, at=NOW + timedelta(hours=1)),
        "unlogged": sigstore.bundle(MANIFEST, leaf=sigstore.leaf(stamped=False)),
        "unknown authority": other.bundle(MANIFEST),
    }
    texts = {name: json.dumps(bundle) for name, bundle in bundles.items()}
    theirs = tool.Tool().sigstore_accepts(sigstore.trusted_root, list(texts.values()), tmp_path)
    ours = [is_accepted(text, sigstore.trusted_root) for text in texts.values()]
    assert ours == theirs == [True, False, False, False]


def test_both_accept_and_refuse_the_same_changed_signatures(tmp_path: Path) -> None:
    sigstore, source = Sigstore(), random.Random(5)
    good = sigstore.bundle(MANIFEST)
    names, texts = zip(*(changed(good, source) for _ in range(CHANGES)), strict=True)
    theirs = tool.Tool().sigstore_accepts(sigstore.trusted_root, texts, tmp_path)
    ours = [is_accepted(text, sigstore.trusted_root) for text in texts]
    differing = [
        (name, is_ours, text)
        for name, text, is_ours, is_theirs in zip(names, texts, ours, theirs, strict=True)
        if is_ours != is_theirs
    ]
    assert {name for name, *_ in differing} <= UNSIGNED
    assert all(is_ours for _, is_ours, _ in differing)
    for text in (text for name, _, text in differing if name == "envelope"):
        assert checkpoint_of(json.loads(text)) == checkpoint_of(good)


def checkpoint_of(bundle: dict[str, Any]) -> str:
    """The signed text of the checkpoint."""
    entry = bundle["verificationMaterial"]["tlogEntries"][0]
    return str(entry["inclusionProof"]["checkpoint"]["envelope"]).partition("\n\n")[0]
