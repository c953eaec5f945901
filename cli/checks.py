"""Judging without storing: `adapter check`.

Invariants
- `check` stores nothing and sends nothing: it asks for the base's facts and judges here, by the server's own rules.
  Of a version on another base only the configuration and the header are read; on its own base nothing is.
"""

from __future__ import annotations

from pathlib import Path

import click

from registry import engines
from registry.adapters import read as contents
from registry.client import push
from registry.client.local import folder as folders
from registry.client.registry import Registry
from registry.compat import evaluate
from registry.engines import EngineProfile
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.names import Ref

from . import output, session, versions


# ------------------------------------------------------------------ check
@click.command()
@click.argument("what", metavar="DIR|REF")
@click.option("--base", default="", help="Base model to check against. Default: the version's, or the folder's.")
@click.option(
    "--engine", "texts", multiple=True, metavar="PROFILE",
    help="Also check this engine, such as vllm==0.33.0,max_lora_rank=32 (repeatable).",
)  # fmt: skip
@output.json_option
def check(what: str, base: str, texts: tuple[str, ...]) -> None:
    """Check whether a folder or version fits a base, and what engines do with it.

    Nothing is pushed. Exits 6 if a check fails. An engine profile is a name, a version and settings that differ from
    the defaults.

    \b
    adapter check out/checkpoint-200 --base smollm2 --engine vllm==0.33.0,max_lora_rank=32
    """
    profiles = [engines.profile(text) for text in texts]
    path = Path(what)
    with session.registry() as registry:
        is_folder = folders.is_meant(what)
        if is_folder:
            verdicts = _folder(registry, path, base, profiles)
        else:
            verdicts = _version(registry, Ref.parse(what), base, profiles)
    document = {"items": verdicts} if profiles else verdicts[0]
    output.answer(document, lambda: _print_verdicts(what, verdicts, is_folder))
    if any(verdict.outcome is Outcome.FAIL for verdict in verdicts):
        click.get_current_context().exit(output.REFUSED)


def _folder(registry: Registry, path: Path, base: str, profiles: list[EngineProfile]) -> list[Verdict]:
    adapter = folders.read_folder(path)
    for reason in adapter.left_out:
        output.note(f"left out: {reason.location} {reason.message}")
    meant = push.Bases(registry).of(adapter, base)
    view, subject = registry.base(meant.name), adapter.manifest(meant).digest
    return evaluate(adapter.found, view.spec, subject, profiles, relatives=view.relatives)


def _version(registry: Registry, ref: Ref, base: str, profiles: list[EngineProfile]) -> list[Verdict]:
    """On its own base from what the registry keeps; on another one from its configuration and header."""
    version = registry.version(ref)
    stored = [v for v in version.verdicts if v.check is Check.COMPAT and base in ("", v.base)]
    if stored:
        exactly = Ref(ref.name, version.digest)
        served = registry.verdicts(exactly, [str(profile) for profile in profiles]).items if profiles else []
        numbers = [v for v in version.verdicts if v.check is Check.WEIGHTS and v.outcome is not Outcome.PASS]
        return [stored[-1], *numbers, *served]
    links = {file.path: file for file in registry.resolve(Ref(ref.name, version.digest)).files}

    def read(path: str, start: int, length: int) -> bytes:
        length = min(length, links[path].size_bytes - start)
        if length <= 0:
            return b""
        with registry.read(links[path].url, start=start, length=length) as chunks:
            return b"".join(chunks)

    adapter = contents.read_any(version.files, read)
    view = registry.base(base or version.base)
    return evaluate(adapter, view.spec, version.digest, profiles, relatives=view.relatives)


def _print_verdicts(what: str, verdicts: list[Verdict], is_folder: bool) -> None:
    for verdict in verdicts:
        where = f"in {verdict.profile}" if verdict.profile else f"on {verdict.base}"
        where = f"{where}, its numbers" if verdict.check is Check.WEIGHTS else where
        click.echo(f"{output.strong(what)} {where}: {output.outcome(verdict.outcome)}")
        for finding in verdict.findings:
            click.echo(f"  {finding.severity:<8} {versions.finding_line(finding)}")
        if verdict.check is Check.COMPAT and verdict.outcome is Outcome.PASS and not verdict.findings:
            later = (
                "; the push reads the numbers (NaN, zeros),\n  and a worker tries whether it acts" if is_folder else ""
            )
            click.echo(output.faint(f"  every tensor has its place and its shape{later}"))
