"""Gates: what an alias requires before it moves, the evidence for a version, and what is missing.

A gate looks at evidence only and names everything that is missing. The newest verdict of a check decides; it counts
when it is `pass`, or `warn` if the gate does not ask for `pass`. The pusher of a version does not approve it, and one
identity approves once. A gate that requires anything stays closed for weights that fail or are not read yet.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Self

from pydantic import Field, model_validator

from registry.evaluation.verdicts import WEIGHTS_PENDING, Check, Outcome, Verdict
from registry.findings import Finding
from registry.model import FrozenModel
from registry.versions.files import GOLDEN

SOAK_LIMIT_SECONDS = 366 * 24 * 3600
MISSED_GOLDEN = frozenset(
    {"smoke.golden_missed", "smoke.golden_not_ended", "smoke.golden_skipped", "smoke.golden_unreadable"}
)
"""Codes of the findings that golden samples leave in a smoke test unless all of them pass."""
ABSENT = {
    Check.COMPAT: "gate.compat_absent",
    Check.WEIGHTS: "gate.weights_absent",
    Check.ENGINE: "gate.engine_absent",
    Check.SMOKE: "gate.smoke_absent",
}
FAILED = {
    Check.COMPAT: "gate.compat_fail",
    Check.WEIGHTS: "gate.weights_fail",
    Check.ENGINE: "gate.engine_fail",
    Check.SMOKE: "gate.smoke_fail",
}
_INSUFFICIENT = {
    Outcome.FAIL: FAILED,
    Outcome.UNKNOWN: {
        Check.COMPAT: "gate.compat_unknown",
        Check.WEIGHTS: "gate.weights_unknown",
        Check.ENGINE: "gate.engine_unknown",
        Check.SMOKE: "gate.smoke_unknown",
    },
    Outcome.WARN: {
        Check.COMPAT: "gate.compat_warn",
        Check.WEIGHTS: "gate.weights_warn",
        Check.SMOKE: "gate.smoke_warn",
    },
}
"""Outcome that does not suffice → check → code of the finding."""


class Approval(FrozenModel):
    """Someone's yes to one version for one alias."""

    identity: str
    at: datetime


class Evidence(FrozenModel):
    """What is known of a version. `verdicts` oldest first; `engines` are those of the engines that a gate names.

    `soak_seconds`: alias → how long it pointed at this version, in all. `signed_by`: verified signatures' identities.
    """

    verdicts: tuple[Verdict, ...] = ()
    engines: tuple[Verdict, ...] = ()
    files: frozenset[str] = frozenset()
    approvals: tuple[Approval, ...] = ()
    weights_pending: bool = False
    """The weights are large, and the server has not read their numbers yet."""
    soak_seconds: dict[str, int] = Field(default_factory=dict)
    signed_by: frozenset[str] = frozenset()
    pushed_by: frozenset[str] = frozenset()
    promoted_by: str = ""
    """Who moves the alias."""

    def newest(self, check: Check) -> Verdict | None:
        """The last verdict of a check."""
        return next((v for v in reversed(self.verdicts) if v.check is check), None)


class Gate(FrozenModel):
    """Requirements of an alias. An empty gate has none.

    `engines`: profiles whose verdict `engine` must be a yes. `golden`: the version brings golden samples, all passed.
    `approvals` of `approvers` (empty: all who may promote). `soak_seconds`: how long the alias `soak_in` pointed at it.
    `signed_by`: one of these identities has signed it. `passes`: checks that must be `pass`, without warnings.
    `two_person`: the approval of the person who moves the alias does not count.
    """

    requires: tuple[Check, ...] = ()
    """Checks that must be `pass` or `warn`. Engines are listed in `engines`."""
    passes: tuple[Check, ...] = ()
    """Checks that must be `pass`, without warnings."""
    engines: tuple[str, ...] = Field(default=(), max_length=16)
    """Engine profiles whose verdict must be `pass` or `warn`, such as `vllm==0.33.0`."""
    golden: bool = False
    """The version has golden samples, and all of them passed in its smoke test."""
    approvals: int = Field(default=0, ge=0, le=32)
    """Number of identities that must approve. The pusher does not count."""
    approvers: tuple[str, ...] = Field(default=(), max_length=64)
    """Identities whose approval counts, subjects or `token:NAME`. Empty: everyone who may promote."""
    two_person: bool = False
    """The approval of the person who moves the alias does not count."""
    soak_in: str = ""
    """Alias that must have pointed at the version before. Empty: none."""
    soak_seconds: int = Field(default=0, ge=0, le=SOAK_LIMIT_SECONDS)
    """How long `soak_in` must have pointed at the version, in all."""
    signed_by: tuple[str, ...] = Field(default=(), max_length=64)
    """One of these identities must have signed the version. Empty: no signature is needed."""

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.approvers and self.approvals > len(set(self.approvers)):
            raise ValueError(
                f"approvals: {self.approvals} are required, and the number of approvers is {len(set(self.approvers))}"
            )
        if bool(self.soak_in) != bool(self.soak_seconds):
            raise ValueError("soak_in and soak_seconds: give both or none")
        if Check.ENGINE in (*self.requires, *self.passes):
            raise ValueError("requires: name engines instead of 'engine'")
        if self.two_person and not self.approvals:
            raise ValueError("two_person: needs at least one approval")
        return self

    def missing(self, evidence: Evidence) -> list[Finding]:
        """What still stands between this evidence and the alias; empty means open."""
        return [
            *self._check_verdicts(evidence),
            *self._check_golden(evidence),
            *self._check_people(evidence),
            *self._check_soak(evidence),
        ]

    def describe(self) -> list[str]:
        """What it requires, in words; empty for nothing."""
        required = [check for check in self.requires if check not in self.passes]
        people = f" of {', '.join(self.approvers)}" if self.approvers else ""
        approvals = f"{self.approvals} approval{'s' * (self.approvals > 1)}{people}"
        return [
            *([f"{' and '.join(required)} must not fail"] if required else []),
            *([f"{' and '.join(self.passes)} must pass without warnings"] if self.passes else []),
            *(f"{profile} must serve it" for profile in self.engines),
            *(["golden samples must pass"] if self.golden else []),
            *([approvals + (", not by the promoter" if self.two_person else "")] if self.approvals else []),
            *([f"{self.soak_seconds / 3600:.3g} hours as {self.soak_in}"] if self.soak_in else []),
            *([f"signed by {' or '.join(self.signed_by)}"] if self.signed_by else []),
        ]

    def valid_approvals(self, evidence: Evidence) -> list[Approval]:
        """The approvals that count: one for each identity, of those who may approve, none of the pusher."""
        counted = {approval.identity: approval for approval in reversed(evidence.approvals)}
        return [approval for identity, approval in counted.items() if self.accepts_approval_of(identity, evidence)]

    def accepts_approval_of(self, identity: str, evidence: Evidence) -> bool:
        """Whether an approval of this identity counts."""
        excluded = evidence.pushed_by | ({evidence.promoted_by} if self.two_person else frozenset())
        return identity not in excluded and (not self.approvers or identity in self.approvers)

    def required_checks(self) -> list[Check]:
        """The checks that must pass, with those of golden samples."""
        return list(dict.fromkeys((*self.requires, *self.passes, *([Check.SMOKE] if self.golden else []))))

    def _check_verdicts(self, evidence: Evidence) -> Iterator[Finding]:
        required = self.required_checks()
        numbers = evidence.newest(Check.WEIGHTS)
        anything = self != Gate()
        if anything and Check.WEIGHTS not in required and numbers is not None and numbers.outcome is Outcome.FAIL:
            required.append(Check.WEIGHTS)
        if anything and evidence.weights_pending:
            required = [check for check in required if check is not Check.WEIGHTS]
            message = "the check 'weights' is still pending, because the weights are large"
            yield Finding.of("error", WEIGHTS_PENDING, str(Check.WEIGHTS), message)
        for check in required:
            yield from _check_verdict(check, evidence.newest(check), must_pass=check in self.passes)
        evaluated = {verdict.profile: verdict for verdict in evidence.engines}
        for profile in self.engines:
            yield from _check_verdict(Check.ENGINE, evaluated.get(profile), profile)

    def golden_passed(self, evidence: Evidence) -> bool:
        """Whether golden samples are asked for, there, and tried without a miss."""
        return self.golden and evidence.newest(Check.SMOKE) is not None and not any(self._check_golden(evidence))

    def _check_golden(self, evidence: Evidence) -> Iterator[Finding]:
        if not self.golden:
            return
        if GOLDEN not in evidence.files:
            yield Finding.of("error", "gate.golden_absent", GOLDEN, "no golden samples: push the version with --golden")
            return
        smoke = evidence.newest(Check.SMOKE)
        missed = [f for f in smoke.findings if f.code in MISSED_GOLDEN] if smoke is not None else []
        if missed:
            yield Finding.of(
                "error", "gate.golden_missed", missed[0].location, f"a golden sample failed: {missed[0].message}"
            )

    def _check_people(self, evidence: Evidence) -> Iterator[Finding]:
        count = len(self.valid_approvals(evidence))
        if count < self.approvals:
            whose = f" of {', '.join(self.approvers)}" if self.approvers else ""
            excluded = "neither the pusher nor the promoter counts" if self.two_person else "the pusher does not count"
            message = f"{count} of {self.approvals} approvals{whose}; {excluded}"
            yield Finding.of("error", "gate.approvals_missing", "approvals", message)
        if self.signed_by and not evidence.signed_by & set(self.signed_by):
            message = f"none of {', '.join(self.signed_by)} has signed it"
            yield Finding.of("error", "gate.signature_absent", "signatures", message)

    def _check_soak(self, evidence: Evidence) -> Iterator[Finding]:
        soaked = evidence.soak_seconds.get(self.soak_in, 0)
        if soaked < self.soak_seconds:
            message = f"'{self.soak_in}' pointed at it for {soaked} seconds; {self.soak_seconds} are required"
            yield Finding.of("error", "gate.soak_short", self.soak_in, message)


def _check_verdict(
    check: Check, verdict: Verdict | None, profile: str = "", *, must_pass: bool = False
) -> Iterator[Finding]:
    location = f"{check} {profile}".strip()
    if verdict is None:
        message = f"no verdict for the check '{location}' yet"
        yield Finding.of("error", ABSENT[check], location, message)
    elif verdict.outcome not in ((Outcome.PASS,) if must_pass else (Outcome.PASS, Outcome.WARN)):
        why = f": {verdict.summary}" if verdict.summary else ""
        message = f"the check '{location}' on base {verdict.base} says {verdict.outcome}{why}"
        yield Finding.of("error", _INSUFFICIENT[verdict.outcome][check], location, message)


GATES: dict[str, Gate] = {
    "main": Gate(),
    "prod": Gate(requires=(Check.COMPAT, Check.SMOKE)),
    "production": Gate(requires=(Check.COMPAT, Check.SMOKE)),
}
ANY_ALIAS = Gate(requires=(Check.COMPAT,))
"""The gate of every alias without one of its own: it must at least fit its base."""


def gate_of(alias: str) -> Gate:
    """The gate of an alias where no one has set one."""
    return GATES.get(alias, ANY_ALIAS)
