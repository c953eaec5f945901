"""Judging without storing: `adapter check`, and `adapter verify`, which reads stored bytes again.

Invariants
- `check` stores nothing and sends nothing: it asks for the base's facts and judges here, by the server's own rules.
  Of a version only the configuration and the header are read.
- `verify` trusts nothing but SHA-256: it hashes every byte that the registry gives now, and the manifest too.

Example
    $ adapter check out/checkpoint-200 --base smollm2
    $ adapter verify acme/support:prod
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import click

from cli import adapters, output, session
from registry import __version__, compat, contents
from registry.client import folder as folders
from registry.client import transfer
from registry.client.api import Registry
from registry.contents import Contents
from registry.digest import Digest, Hasher
from registry.errors import Corrupt, NotFound
from registry.names import Ref
from registry.verdicts import Check, Outcome, Verdict
from registry.wire import BaseView, FileLink, Resolved


# ------------------------------------------------------------------ check
@click.command()
@click.argument("what", metavar="DIR|REF")
@click.option("--base", default="", help="The base to judge against. Default: the version's, or what the folder names.")
@output.json_option
def check(what: str, base: str) -> None:
    """Say whether a folder, or a version on any base, fits. Exits 6 when it does not."""
    path = Path(what)
    with session.registry() as registry:
        verdict = _folder(registry, path, base) if path.is_dir() else _version(registry, Ref.parse(what), base)
    output.answer(verdict, lambda: _print_verdict(what, verdict))
    if verdict.outcome is Outcome.FAIL:
        click.get_current_context().exit(output.REFUSED)


def _folder(registry: Registry, path: Path, base: str) -> Verdict:
    found = folders.read_folder(path)
    for reason in found.left_out:
        output.note(f"left out: {reason.place} {reason.sentence}")
    meant = transfer.Bases(registry).of(found, base)
    return _judge(found.contents, registry.base(meant.name), found.manifest(meant).digest)


def _version(registry: Registry, ref: Ref, base: str) -> Verdict:
    version = registry.version(ref)
    stored = [v for v in version.verdicts if v.check is Check.FITS and base in ("", v.base)]
    if stored:
        return stored[-1]
    links = {file.path: file for file in registry.resolve(Ref(ref.name, version.digest)).files}

    def read(path: str, start: int, length: int) -> bytes:
        length = min(length, links[path].size_bytes - start)
        if length <= 0:
            return b""
        with registry.read(links[path].url, start=start, length=length) as chunks:
            return b"".join(chunks)

    found = contents.read_contents(version.files, read)
    return _judge(found, registry.base(base or version.base), version.digest)


def _judge(found: Contents, base: BaseView, subject: Digest) -> Verdict:
    findings = (*found.findings, *compat.check_fit(found.lora, base.spec))
    made_by = {"adapter-registry": __version__}
    return Verdict.of(Check.FITS, subject, base.name, base.fingerprint, findings, made_by=made_by)


def _print_verdict(what: str, verdict: Verdict) -> None:
    click.echo(f"{output.strong(what)} on {verdict.base}: {output.outcome(verdict.outcome)}")
    for finding in verdict.findings:
        click.echo(f"  {finding.severity:<8} {adapters.finding_line(finding)}")
    if verdict.outcome is Outcome.PASS and not verdict.findings:
        click.echo(output.faint("  every tensor has its place and its shape; whether it acts, a worker must try"))


# ------------------------------------------------------------------ verify
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
@output.json_option
def verify(ref: Ref) -> None:
    """Read every stored byte of a version now and compare with its digest. Exits 70 when something differs."""
    with session.registry() as registry:
        resolved = registry.resolve(ref)
        rereads = [_reread(registry, resolved, file) for file in resolved.files]
    listed = {(f.path, f.digest) for f in resolved.manifest.files} == {(f.path, f.digest) for f in resolved.files}
    manifest = Reread("the manifest", resolved.digest, resolved.manifest.digest, len(resolved.manifest.to_bytes()))
    items = [manifest, *rereads]
    whole = listed and all(item.ok for item in items)
    document = {
        "name": resolved.name,
        "number": resolved.number,
        "digest": resolved.digest,
        "ok": whole,
        "files": [{**asdict(item), "ok": item.ok} for item in items],
        "signatures": [],
    }
    output.answer(document, lambda: _print_rereads(resolved, items, whole))
    if not whole:
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


def _print_rereads(resolved: Resolved, items: list[Reread], whole: bool) -> None:
    click.echo(f"{output.strong(f'{resolved.name}@{resolved.number}')}  {output.faint(resolved.digest)}")
    for item in items:
        mark = click.style("ok     ", fg="green") if item.ok else click.style("differs", fg="red", bold=True)
        click.echo(f"  {mark}  {item.path}  {output.faint(output.size(item.size_bytes))}")
        if not item.ok:
            click.echo(f"           should be {item.expected}, {item.error or f'is {item.found}'}")
    click.echo("every byte is what its digest says" if whole else "this version is damaged: do not use it")
    click.echo(output.faint("signatures: none; a digest says what the bytes are, not who made them"))
