"""`adapter verify`: a version's bytes, manifest, attestations, signatures and place in the audit log.

Invariants
- Nothing is trusted but SHA-256 and the keys of the log that this machine remembers; offline, those that are given.
- It says *who* signed, never that something is safe: whose a key is, and whether to believe them, is yours to know.
- Anything that does not agree exits 70.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from registry.api.catalog import FileLink, Resolved
from registry.attestations.certificates import Trust
from registry.client import bundle
from registry.client.audit import Audit
from registry.client.bundle import LIMIT_BYTES, Bundle, Examined, Reread
from registry.client.core import Versions
from registry.client.signing import Signed
from registry.digest import Hasher
from registry.errors import Corrupt, Invalid, NotFound
from registry.names import Ref
from registry.tlog.notes import Verifier

from . import output, session

_PLACE = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("ref", type=output.REF, required=False)
@click.option(
    "--signed-by",
    multiple=True,
    metavar="KEY",
    help="Require a signature of this identity, such as key:… (repeatable).",
)
@click.option(
    "--trusted-roots",
    type=_PLACE,
    envvar="ADAPTER_TRUSTED_ROOTS",
    help="Trusted roots of certificates: PEM, Sigstore's trusted_root.json, or a folder of such files.",
)
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write all evidence to this file.")
@click.option("--offline", type=_PLACE, metavar="FILE", help="Verify a file written by --save, without a registry.")
@click.option("--folder", type=_PLACE, metavar="DIR", help="With --offline: hash the files in this folder.")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="With --offline: independent log key (repeatable).")
@output.json_option
def verify(
    ref: Ref | None, signed_by: tuple[str, ...], trusted_roots: Path | None, save: Path | None, offline: Path | None,
    folder: Path | None, keys: tuple[str, ...],
) -> None:  # fmt: skip
    """Verify the bytes, manifest, attestations, signatures and log entry of a version. Exits 70 if anything is wrong.

    It shows who pushed and who signed, not that an adapter is safe. Log keys are those this machine remembers from
    its first contact.

    \b
    adapter verify acme/support:prod --signed-by key:5f0c…
    adapter verify acme/support:prod --save support.bundle
    adapter verify --offline support.bundle --folder support --key registry.example.org/3f9c+…
    """
    if (ref is None) == (offline is None) or (offline is None and (folder or keys)) or (offline and save):
        raise click.UsageError("name a REF, or --offline FILE, which may have --folder and --key")
    trust = _trust(trusted_roots)
    if offline is not None:
        bundle_read = Bundle.parse(_read(offline), file=str(offline))
        held = tuple(Verifier.parse(key) for key in keys or bundle_read.keys)
        rereads, listed = bundle.reread(folder, bundle_read.manifest) if folder else [], True
    else:
        with session.versions() as registry:
            resolved = registry.resolve(ref or "")
            rereads = [_reread(registry, resolved, file) for file in resolved.files]
            bundle_read, held = _asked(registry, resolved)
        listed = {(f.path, f.digest) for f in resolved.manifest.files} == {(f.path, f.digest) for f in resolved.files}
    examined = bundle.examined(bundle_read, held, trust)
    if save is not None:
        save.write_bytes(bundle_read.to_bytes())
    _answer(bundle_read, listed, rereads, examined, signed_by, offline=offline is None or bool(keys))


def _answer(
    bundle_read: Bundle,
    listed: bool,
    rereads: Sequence[Reread],
    examined: Examined,
    signed_by: Sequence[str],
    *,
    offline: bool,
) -> None:
    """Tell what was found, and exit by it. `given`: the log's keys did not come with what they are to prove."""
    manifest = Reread(
        "the manifest", bundle_read.digest, bundle_read.manifest.digest, len(bundle_read.manifest.to_bytes())
    )
    items = [manifest, *rereads]
    whole = listed and all(item.ok for item in items)
    identities = {item.identity for item in examined.signed if item.ok and item.kind == "signature"}
    missing = sorted(set(signed_by) - identities)
    good = (
        whole and all(item.ok or item.unverified for item in examined.signed) and not missing and not examined.problem
    )
    document = {
        "name": bundle_read.name,
        "number": bundle_read.number,
        "digest": bundle_read.digest,
        "ok": good,
        "files": [{**asdict(item), "ok": item.ok} for item in items],
        "signatures": [asdict(item) for item in examined.signed],
        "missing": missing,
        "log": {"seq": examined.seq, "problem": examined.problem},
        "key_given": offline,
    }
    output.answer(document, lambda: _print(bundle_read, items, whole, examined, missing, offline))
    if not good:
        click.get_current_context().exit(output.EXIT_CODES[Corrupt])


def _asked(registry: Versions, resolved: Resolved) -> tuple[Bundle, tuple[Verifier, ...]]:
    """All that the registry shows of a version, and the keys of its log that this machine remembers."""
    embedded, audit = session.target().embedded, Audit(registry)
    collected, note = bundle.collect(audit, resolved), audit.checkpoint()
    session.trusted_checkpoints().check(registry, note, by_origin=embedded)
    head = session.trusted_checkpoints().known(registry, note, by_origin=embedded)
    return collected, head.verifiers if head is not None else ()


def _reread(registry: Versions, resolved: Resolved, file: FileLink) -> Reread:
    hasher = Hasher()
    expected = resolved.manifest.file(file.path)
    try:
        with registry.read(file.url) as chunks:
            for chunk in chunks:
                hasher.update(chunk)
    except (Corrupt, NotFound) as e:
        return Reread(file.path, str(expected.digest if expected else ""), "", hasher.size_bytes, e.detail)
    return Reread(file.path, str(expected.digest if expected else ""), str(hasher.digest()), hasher.size_bytes)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LIMIT_BYTES + 1)
    except OSError as e:
        raise Invalid("FOLDER_INVALID", f"{path} cannot be read: {e.strerror}") from e


def _trust(location: Path | None) -> Trust:
    files = sorted(location.iterdir()) if location is not None and location.is_dir() else [location] if location else []
    try:
        return Trust.parse([file.read_bytes() for file in files if file.is_file()])
    except OSError as e:
        raise Invalid("SETTING_INVALID", f"{location} cannot be read: {e.strerror}") from e


def _print(
    bundle_read: Bundle, items: Sequence[Reread], whole: bool, examined: Examined, missing: Sequence[str], offline: bool
) -> None:
    click.echo(f"{output.strong(f'{bundle_read.name}@{bundle_read.number}')}  {output.faint(bundle_read.digest)}")
    for item in items:
        click.echo(f"  {_mark(item.ok)}  {item.path}  {output.faint(output.size(item.size_bytes))}")
        if not item.ok:
            click.echo(f"           should be {item.expected}, {item.error or f'is {item.found}'}")
    for line in examined.signed:
        click.echo(
            f"  {_open() if line.unverified else _mark(line.ok)}  {'signature' if line.unverified else line.kind}  "
            f"{line.problem if line.unverified else line.who or line.identity}  {output.faint(_rest(line))}"
        )
    for identity in missing:
        click.echo(f"  {_mark(False)}  signature  {identity}  {output.faint('is missing')}")
    if examined.problem:
        click.echo(f"  {_mark(False)}  audit log  {examined.problem}")
    elif examined.seq is not None:
        click.echo(f"  {_mark(True)}  audit log  {output.faint(f'event {examined.seq} records this push')}")
    if len(items) == 1:
        click.echo(output.faint("no file was read: --folder names where they lie"))
    else:
        click.echo("every byte is what its digest says" if whole else "this version is damaged: do not use it")
    if not any(line.kind == "signature" and line.ok for line in examined.signed):
        click.echo(output.faint("signatures: none that verifies; a digest says what the bytes are, not who made them"))
    if not offline:
        click.echo(
            output.faint("the log's keys came with the file: give those that you have from elsewhere with --key")
        )


def _rest(line: Signed) -> str:
    if line.unverified:
        return f"the registry says {line.identity}" if line.kind == "signature" else ""
    return line.says or line.problem


def _open() -> str:
    return click.style("open   ", fg="yellow")


def _mark(good: bool) -> str:
    return click.style("ok     ", fg="green") if good else click.style("differs", fg="red", bold=True)
