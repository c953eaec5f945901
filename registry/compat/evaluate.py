"""Verdicts on an adapter that need no weights: `compat`, then one `engine` for each profile, in the order given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from registry import __version__, compat, engines
from registry.adapters.read import Contents, Found
from registry.bases import BaseSpec, Similarity
from registry.compat import files as compat_files
from registry.digest import Digest
from registry.engines import EngineProfile, version_facts
from registry.engines import facts as engine_facts
from registry.evaluation.verdicts import Check, Finding, Verdict


def verdicts(
    contents: Found,
    base: BaseSpec,
    subject: Digest,
    profiles: Iterable[EngineProfile] = (),
    *,
    relatives: Sequence[Similarity] = (),
) -> list[Verdict]:
    """`compat`, and `engine` for each of the profiles. `subject` is the digest of what is judged."""
    findings = fit(contents, base, relatives)
    made_by = {"registry": __version__}
    compat = Verdict.of(Check.COMPAT, subject, base.name, base.fingerprint, findings, made_by=made_by)
    stored = engine_facts.to_stored(version_facts.of_engine(contents))
    served = [
        engines.verdict(stored, asked, subject=subject, base=base, compat=compat.outcome, registry=__version__)
        for asked in profiles
    ]
    return [compat, *served]


def fit(contents: Found, base: BaseSpec, relatives: Sequence[Similarity] = ()) -> tuple[Finding, ...]:
    """All findings of the check `compat`, whichever tool wrote the adapter."""
    if isinstance(contents, Contents):
        return (*contents.findings, *compat.check_fit(contents.lora, base, relatives))
    if contents.findings:  # names of no known format: there is nothing to compare
        return contents.findings
    return tuple(compat_files.check_file(contents.file, base))
