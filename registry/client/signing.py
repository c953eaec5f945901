"""Signing and verifying versions here, where the keys are: what `adapter push --sign` and `adapter verify` do.

Invariants
- A private key never leaves this machine; what is sent is the bundle and the public key.
- Every signature is verified again here, against the manifest whose digest is the version. What the registry says of a
  signature is not used.
- The registry's own statements count only with a key of the log that this machine remembers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from registry import attestations
from registry.api.audit import AttestationView, EventProof, SignRequest
from registry.attestations import Statement, keys, models
from registry.attestations.certificates import Trust
from registry.attestations.keys import PrivateKey, PublicKey
from registry.client.audit import Audit
from registry.client.core import Versions
from registry.digest import Digest
from registry.errors import Invalid
from registry.events import EventType, with_former_types
from registry.manifest import Manifest
from registry.names import Ref
from registry.tlog import notes
from registry.tlog.notes import Verifier

BROUGHT = ("signature", "unverified")
"""Kinds of attestations that somebody brought."""


@dataclass(frozen=True, slots=True)
class Signed:
    """One attestation of a version: of which kind, whose, whether it verifies here, and what is wrong otherwise."""

    kind: str
    identity: str
    who: str
    says: str
    digest: str
    seq: int | None
    ok: bool
    problem: str = ""
    unverified: bool = False
    """Nothing is wrong with it, and nobody whom this machine trusts vouches for it."""


def sign(audit: Audit, ref: Ref, manifest: Manifest, key: PrivateKey) -> AttestationView:
    """Sign a version with a key of this machine and bring the signature to the registry."""
    bundle = models.sign(str(ref.name), manifest, key)
    return audit.sign(ref, SignRequest(bundle=bundle, public_key=key.public.pem))


@dataclass(frozen=True, slots=True)
class WithKey:
    """A version that is signed here when it has been pushed."""

    key: PrivateKey

    def check(self, manifest: Manifest) -> None:
        """A signature that is still to be made is of these files."""

    def give(self, registry: Versions, ref: Ref, manifest: Manifest) -> None:
        sign(Audit(registry), ref, manifest, self.key)


@dataclass(frozen=True, slots=True)
class Brought:
    """A version that comes with a signature made elsewhere."""

    request: SignRequest

    def check(self, manifest: Manifest) -> None:
        """`Invalid` (SIGNATURE_INVALID) unless it is of these files, before one of them is sent."""
        if self.request.public_key:
            models.verify_with_key(self.request.bundle, PublicKey.parse(self.request.public_key.encode()), manifest)
        else:
            models.verify_with_certificate(self.request.bundle, manifest, Trust(), datetime.now(UTC))

    def give(self, registry: Versions, ref: Ref, _manifest: Manifest) -> None:
        Audit(registry).sign(ref, self.request)


class Signable(Protocol):
    """A version, as whoever has asked for it knows it."""

    @property
    def name(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def digest(self) -> Digest: ...
    @property
    def manifest(self) -> Manifest: ...


def called(version: Signable, arrival: EventProof | None = None, log_keys: Sequence[Verifier] = ()) -> list[str]:
    """What this version is called, and what the log proves that it was called before: `namespace/name@3`.

    `arrival`: the event of the transfer that gave its adapter the name of today. It counts only if the log holds it.
    """
    names = [str(version.name)]
    if arrival is not None and notes.verify_proof(arrival.proof, arrival.entry.encode(), *log_keys) is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            event = json.loads(arrival.entry)
            renames = with_former_types([EventType.ADAPTER_RENAME_FROM])
            if event["action"] in renames and event["object"] == names[0]:
                names += [str(name) for name in event["detail"]["names"]]
    return [f"{name}@{version.number}" for name in names]


def examine(
    views: Iterable[AttestationView],
    version: Signable,
    log_keys: Sequence[Verifier],
    trust: Trust | None = None,
    *,
    names: Sequence[str] = (),
) -> list[Signed]:
    """Every attestation of a version, verified here; signatures of certificates by whom `trust` names.

    `names`: what the version is and was called (`called`); without them only its name of today counts.
    """
    examined = []
    for view in views:
        try:
            brought = view.kind in BROUGHT
            if brought:
                examined.append(_signature(view, version, trust or Trust()))
            else:
                examined.append(_own(view, version, log_keys, names or called(version)))
        except Invalid as e:
            examined.append(_line(view, "", "", e.detail))
    return examined


def included(shown: EventProof, version: Signable, log_keys: Sequence[Verifier], *, names: Sequence[str] = ()) -> str:
    """What is wrong with the log's word on a push; empty when its entry is in the log and is about this version."""
    if notes.verify_proof(shown.proof, shown.entry.encode(), *log_keys) is None:
        return f"the log does not prove event {shown.seq} with a key that this machine remembers"
    try:
        event = json.loads(shown.entry)
        named = (event["seq"], event["action"], event["detail"].get("digest"))
        its_own = event["object"] in (names or called(version))
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"event {shown.seq} of the log cannot be read"
    if named != (shown.seq, EventType.VERSION_PUSH, str(version.digest)) or not its_own:
        return f"event {shown.seq} of the log is about something else"
    return ""


def _signature(view: AttestationView, version: Signable, trust: Trust) -> Signed:
    if Digest.of(view.bundle.encode()) != view.digest:
        raise attestations.signature_error(f"the registry says that this is the signature of {view.identity}")
    if not view.public_key:
        return _certified(view, version, trust)
    key = PublicKey.parse(view.public_key.encode())
    identity = models.verify_with_key(view.bundle, key, version.manifest)
    if identity != view.identity:
        raise attestations.signature_error(f"the registry says that this is the signature of {view.identity}")
    return _line(view, identity, f"signed these files; uploaded by {view.made_by}", "")


def _certified(view: AttestationView, version: Signable, trust: Trust) -> Signed:
    """A signature of a certificate, as of the moment at which the registry says that it was brought."""
    certified = models.verify_with_certificate(view.bundle, version.manifest, trust, view.made_at)
    if not certified.identity:
        return replace(_line(view, view.identity, "", certified.problem), unverified=True)
    if view.kind == "signature" and certified.identity != view.identity:
        raise attestations.signature_error(f"the registry says that this is the signature of {view.identity}")
    return _line(view, certified.identity, f"signed these files; uploaded by {view.made_by}", "")


def _own(view: AttestationView, version: Signable, log_keys: Sequence[Verifier], names: Sequence[str]) -> Signed:
    by_identity = {keys.of_raw(v.public).identity: (keys.of_raw(v.public), v.name) for v in log_keys}
    if view.identity not in by_identity:
        raise attestations.signature_error(
            f"the registry signed with {view.identity}, which this machine does not remember"
        )
    key, origin = by_identity[view.identity]
    statement = attestations.verify_envelope(view.bundle.encode(), key)
    name = next((name for name in names if statement.subjects.get(name) == Digest(version.digest).hex), None)
    if name is None:
        raise attestations.signature_error(f"the statement is not about {names[0]} with this manifest")
    actor = str(statement.predicate.get("actor", ""))
    former = f" as {name}" if name != names[0] else ""
    return _line(view, f"{actor}, by the word of {origin}", _says(statement) + former, "")


def _says(statement: Statement) -> str:
    at = str(statement.predicate.get("at", ""))[:16].replace("T", " ")
    if statement.predicate_type == attestations.PUSH:
        return f"pushed this version at {at}"
    return f"judged it at {at}: {statement.predicate.get('check')} {statement.predicate.get('outcome')}"


def _line(view: AttestationView, who: str, says: str, problem: str) -> Signed:
    return Signed(view.kind, view.identity, who, says, str(view.digest), view.seq, not problem, problem)
