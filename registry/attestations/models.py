"""OpenSSF model signing: bundles that sign the files of a model, made and read with keys (certificates: `certified`).

    subject     the model's name, and the SHA-256 over the digests of its files in the order of their names
    predicate   `resources`: each file's name, algorithm and digest; `serialization`: how they were hashed

A bundle signs a version if it names each of the version's files with its digest; it may name more. What we sign also
names the manifest, which pins base and parents, and lists our own note in a pulled folder as ignored.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography import x509

from registry import attestations
from registry.attestations import Statement, certificates, signature_error
from registry.attestations.keys import PrivateKey, PublicKey
from registry.versions.files import NOTE
from registry.versions.manifest import Manifest

MODEL = "https://model_signing/signature/v1.0"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def sign(name: str, manifest: Manifest, key: PrivateKey) -> str:
    """The bundle that signs a version's files: a sigstore bundle, as `model_signing verify key` reads it."""
    files = sorted((file.path, file.digest.hex) for file in manifest.files)
    resources = [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in files]
    predicate = {
        "manifest": str(manifest.digest),
        "resources": resources,
        "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [NOTE]},
    }
    payload = attestations.statement(MODEL, {name: _root(digest for _, digest in files)}, predicate)
    envelope: dict[str, Any] = json.loads(attestations.sign_statement(payload, key))
    envelope["signatures"] = [{**signature, "keyid": ""} for signature in envelope["signatures"]]
    hint = hashlib.sha256(key.public.pem.encode()).hexdigest()
    material = {"publicKey": {"hint": hint}, "tlogEntries": []}
    return json.dumps({"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope})


def verify_with_key(bundle: str, key: PublicKey, manifest: Manifest) -> str:
    """The identity that signed the files of this version. `Invalid` (SIGNATURE_INVALID) says what does not agree."""
    require_files(attestations.verify_envelope(envelope_of(attestations.read(bundle.encode())), key), manifest)
    return key.identity


def name_in_certificate(bundle: str) -> str:
    """Whose the certificate of a bundle says that it is. `Invalid` (SIGNATURE_INVALID) without one."""
    _, chain = certificates_of(attestations.read(bundle.encode()))
    return certificates.name_of(chain[0])


def certificates_of(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[x509.Certificate, ...]]:
    """The verification material of a bundle, and its certificates, the one that signed first."""
    material = document.get("verificationMaterial")
    chain = certificates.of_material(material) if isinstance(material, dict) else ()
    if not isinstance(material, dict) or not chain:
        raise signature_error("the bundle brings no certificate: give the public key that it verifies with")
    return material, chain


def require_files(statement: Statement, manifest: Manifest) -> None:
    """`Invalid` (SIGNATURE_INVALID) unless the statement names each file of the manifest with its digest."""
    signed = files_of(statement)
    for file in manifest.files:
        if file.path not in signed:
            raise signature_error(f"the signature does not name {file.path}")
        if signed[file.path] != file.digest.hex:
            raise signature_error(f"the signature is about other bytes of {file.path}: sha256:{signed[file.path][:64]}")


def files_of(statement: Statement) -> dict[str, str]:
    """Name → SHA-256 of every file that a statement of the format signs."""
    if statement.predicate_type != MODEL:
        raise signature_error(f"the statement is of type {statement.predicate_type[:100]!r}, not {MODEL}")
    resources, how = statement.predicate.get("resources"), statement.predicate.get("serialization")
    if not isinstance(resources, list) or not isinstance(how, Mapping) or how.get("method") != "files":
        raise signature_error("the statement does not list whole files (serialization method 'files')")
    digest_by_name: dict[str, str] = {}
    digests = []
    for item in resources:
        name, digest = (item.get("name"), item.get("digest")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(digest, str) or item.get("algorithm") != "sha256":
            raise signature_error("resources: each needs a name, the algorithm sha256 and a digest")
        if name in digest_by_name:
            raise signature_error(f"resources: {name[:200]!r} is named twice")
        digest_by_name[name] = digest
        digests.append(digest)
    if list(statement.subjects.values()) != [_root(digests)]:
        raise signature_error("the subject is not the digest over the resources")
    return digest_by_name


def _root(digests: Any) -> str:
    hasher = hashlib.sha256()
    for digest in digests:
        try:
            hasher.update(bytes.fromhex(digest))
        except ValueError as e:
            raise signature_error("resources: a digest is not hex") from e
    return hasher.hexdigest()


def envelope_of(document: dict[str, Any]) -> Mapping[str, Any]:
    """The envelope of a bundle; what is no bundle is taken for an envelope."""
    inner = document.get("dsseEnvelope", document)
    if not isinstance(inner, dict):
        raise signature_error("dsseEnvelope: not an object")
    return inner
