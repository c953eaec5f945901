"""Judging without storing: `adapter check`, and `adapter verify`, which reads stored bytes again.

Invariants
- `check` stores nothing. A folder is read by the same rules as a push; only its configuration and header are sent.
- `verify` trusts nothing but SHA-256: it hashes every byte that the registry gives now, and the manifest too.

Example
    $ adapter check out/checkpoint-200 --base smollm2
    $ adapter verify acme/support:prod
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import click

from cli import output, session
from registry import tensors
from registry.client import folder as folders
from registry.client.api import Registry
from registry.digest import Hasher
from registry.errors import Corrupt, Invalid, NotFound
from registry.manifest import CONFIG, WEIGHTS
from registry.names import Ref
from registry.verdicts import Outcome, Verdict
from registry.wire import CheckRequest, FileLink, Resolved

LENGTH_BYTES = 8
"""A safetensors file begins with its header's length."""


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
    name = base or found.contents.lora.base_name
    if not name:
        raise Invalid("BASE_INVALID", f"{path}: its configuration names no base", next_step="say which: --base NAME")
    with found.sources[WEIGHTS].open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = file.read(length).decode()
    config = found.sources[CONFIG].read_text("utf-8")
    size = next(f.size_bytes for f in found.files if f.path == WEIGHTS)
    return registry.check(CheckRequest(base=name, config=config, header=header, size_bytes=size))


def _version(registry: Registry, ref: Ref, base: str) -> Verdict:
    if not base or base == registry.version(ref).base:
        found = [v for v in registry.version(ref).verdicts if v.check == "fits"]
        if found:
            return found[-1]
    resolved = registry.resolve(ref)
    weights, config = _link(resolved, WEIGHTS), _link(resolved, CONFIG)
    length = int.from_bytes(_bytes(registry, weights, 0, LENGTH_BYTES), "little")
    if length > tensors.LIMITS.header_bytes:
        raise Corrupt("DIGEST_MISMATCH", f"{WEIGHTS} of {ref}: its header cannot have {length} bytes")
    header = _bytes(registry, weights, LENGTH_BYTES, length).decode()
    text = _bytes(registry, config, 0, config.size_bytes).decode()
    name = base or resolved.manifest.base.name
    return registry.check(CheckRequest(base=name, config=text, header=header, size_bytes=weights.size_bytes))


def _link(resolved: Resolved, path: str) -> FileLink:
    found = next((file for file in resolved.files if file.path == path), None)
    if found is None:
        raise Invalid("MANIFEST_INVALID", f"{resolved.name}@{resolved.number} has no {path}, so it cannot be checked")
    return found


def _bytes(registry: Registry, link: FileLink, start: int, length: int) -> bytes:
    with registry.read(link.url, start=start, length=length) as chunks:
        return b"".join(chunks)


def _print_verdict(what: str, verdict: Verdict) -> None:
    click.echo(f"{output.strong(what)} on {verdict.base}: {output.outcome(verdict.outcome)}")
    for finding in verdict.findings:
        expected = f" (expected {finding.expected}, found {finding.found})" if finding.expected else ""
        told = expected if finding.expected and finding.expected not in finding.sentence else ""
        click.echo(f"  {finding.severity:<8} {finding.sentence}{told}")
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
