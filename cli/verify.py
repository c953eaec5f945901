"""`adapter verify`: a version's bytes, manifest, attestations, signatures and place in the audit log.

Invariants
- Nothing is trusted but SHA-256 and the keys of the log that this machine remembers.
- It says *who* signed, never that something is safe: whose a key is, and whether to believe them, is yours to know.
- Anything that does not agree exits 70.

Example
    $ adapter verify acme/support:prod
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import click

from cli import output, session
from registry.attestations.certificates import Trust
from registry.client import signing
from registry.client.api import Registry
from registry.client.audit import Audit
from registry.client.signing import Signed
from registry.digest import Hasher
from registry.errors import Corrupt, Invalid, NotFound
from registry.names import Ref
from registry.wire import FileLink, Resolved


@dataclass(frozen=True, slots=True)
class Reread:
    """One file read again: what it should hash to and what it hashed to. `error`: it could not be read."""

    path: str
    expected: str
    found: str
    size_bytes: int
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.expected == self.found


@click.command()
@click.argument("ref", type=output.REF)
@click.option(
    "--signed-by",
    multiple=True,
    metavar="KEY",
    help="Demand a signature of this identity (key:…, …); repeat it.",
)
@click.option(
    "--trusted-roots",
    type=click.Path(path_type=Path, exists=True),
    envvar="ADAPTER_TRUSTED_ROOTS",
    help="Who vouches for certificates: PEM roots, Sigstore's trusted_root.json, or a folder of such.",
)
@output.json_option
def verify(ref: Ref, signed_by: tuple[str, ...], trusted_roots: Path | None) -> None:
    """Verify bytes, manifest, attestations, signatures and the audit log's word on a version. Exits 70 otherwise."""
    with session.registry() as registry:
        resolved = registry.resolve(ref)
        rereads = [_reread(registry, resolved, file) for file in resolved.files]
        signed, log = _examine(registry, resolved, _trust(trusted_roots))
    listed = {(f.path, f.digest) for f in resolved.manifest.files} == {(f.path, f.digest) for f in resolved.files}
    manifest = Reread("the manifest", resolved.digest, resolved.manifest.digest, len(resolved.manifest.to_bytes()))
    items = [manifest, *rereads]
    whole = listed and all(item.ok for item in items)
    known = {item.identity for item in signed if item.ok and item.kind == "signature"}
    missing = sorted(set(signed_by) - known)
    good = whole and all(item.ok or item.unverified for item in signed) and not missing and not log["problem"]
    document = {
        "name": resolved.name,
        "number": resolved.number,
        "digest": resolved.digest,
        "ok": good,
        "files": [{**asdict(item), "ok": item.ok} for item in items],
        "signatures": [asdict(item) for item in signed],
        "missing": missing,
        "log": log,
    }
    output.answer(document, lambda: _print(resolved, items, whole, signed, missing, log))
    if not good:
        click.get_current_context().exit(output.EXIT_CODES[Corrupt])


def _reread(registry: Registry, resolved: Resolved, file: FileLink) -> Reread:
    hasher = Hasher()
    expected = resolved.manifest.file(file.path)
    try:
        with registry.read(file.url) as chunks:
            for chunk in chunks:
                hasher.update(chunk)
    except (Corrupt, NotFound) as e:
        return Reread(file.path, str(expected.digest if expected else ""), "", hasher.size_bytes, e.detail)
    return Reread(file.path, str(expected.digest if expected else ""), str(hasher.digest()), hasher.size_bytes)


def _examine(registry: Registry, resolved: Resolved, trust: Trust) -> tuple[list[Signed], dict[str, object]]:
    """The attestations, and where the log tells of this push."""
    embedded, audit = session.target().embedded, Audit(registry)
    attested = audit.attestations(f"{resolved.name}@{resolved.number}")
    note = audit.checkpoint()
    session.heads().check(registry, note, by_origin=embedded)
    head = session.heads().known(registry, note, by_origin=embedded)
    keys = head.verifiers if head is not None else ()
    signed = signing.examine(audit, resolved, keys, trust)
    pushes = [item.seq for item in attested.items if item.kind == "push" and item.seq is not None]
    if not pushes:
        return signed, {"seq": None, "problem": ""}
    return signed, {"seq": pushes[0], "problem": signing.included(audit, resolved, pushes[0], keys)}


def _trust(place: Path | None) -> Trust:
    files = sorted(place.iterdir()) if place is not None and place.is_dir() else [place] if place else []
    try:
        return Trust.parse([file.read_bytes() for file in files if file.is_file()])
    except OSError as e:
        raise Invalid("SETTING_INVALID", f"{place} cannot be read: {e.strerror}") from e


def _print(
    resolved: Resolved,
    items: list[Reread],
    whole: bool,
    signed: list[Signed],
    missing: list[str],
    log: dict[str, object],
) -> None:
    click.echo(f"{output.strong(f'{resolved.name}@{resolved.number}')}  {output.faint(resolved.digest)}")
    for item in items:
        click.echo(f"  {_mark(item.ok)}  {item.path}  {output.faint(output.size(item.size_bytes))}")
        if not item.ok:
            click.echo(f"           should be {item.expected}, {item.error or f'is {item.found}'}")
    for line in signed:
        click.echo(
            f"  {_open() if line.unverified else _mark(line.ok)}  {'signature' if line.unverified else line.kind}  "
            f"{line.problem if line.unverified else line.who or line.identity}  {output.faint(_rest(line))}"
        )
    for identity in missing:
        click.echo(f"  {_mark(False)}  signature  {identity}  {output.faint('is missing')}")
    if log["problem"]:
        click.echo(f"  {_mark(False)}  audit log  {log['problem']}")
    elif log["seq"] is not None:
        click.echo(f"  {_mark(True)}  audit log  {output.faint('event ' + str(log['seq']) + ' tells of this push')}")
    click.echo("every byte is what its digest says" if whole else "this version is damaged: do not use it")
    if not any(line.kind == "signature" and line.ok for line in signed):
        click.echo(output.faint("signatures: none that verifies; a digest says what the bytes are, not who made them"))


def _rest(line: Signed) -> str:
    if line.unverified:
        return f"the registry says {line.identity}" if line.kind == "signature" else ""
    return line.says or line.problem


def _open() -> str:
    return click.style("open   ", fg="yellow")


def _mark(good: bool) -> str:
    return click.style("ok     ", fg="green") if good else click.style("differs", fg="red", bold=True)
