"""Every way in which a request can fail, as one tree that knows nothing of HTTP or exit codes.

    RegistryError
    ├── NotFound          it does not exist, or the actor may not see it (the same response on purpose)
    ├── Invalid           the input breaks a rule, and the message says which
    ├── TooLarge          the input exceeds a limit or a quota, and the message says which
    ├── Conflict          the resource changed between the caller's read and the caller's write
    ├── Refused           understood and not done: a gate, a verdict, a yanked version
    ├── Unauthenticated   no credential, or one that is not valid
    ├── Denied            a valid credential without this right
    ├── Unavailable       the database or the store cannot serve now, or requests are too many; try later
    └── Corrupt           stored bytes do not hash to their name, or a response does not match its request

An exception means that there is no result; its findings are the rules that the input breaks. Each code belongs to one
class, so a client rebuilds the class from the code. HTTP statuses are in registry/server/http/problems.py.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, ClassVar, Self

from registry.findings import Finding
from registry.next_steps import NextStep

RETRY_AFTER_LIMIT_SECONDS = 10**6
_DETAIL_LIMIT = 20_000
_NEXT_STEP_LIMIT = 2000
_FINDINGS_LIMIT = 200
_PARAMETERS_LIMIT, _PARAMETER_LIMIT = 20, 600
"""Of another side's problem, whose texts and findings beyond these are not kept."""


RENAMED_TO = "renamed_to"
"""The parameter of an error about a former name of an adapter: the present one."""


class RegistryError(Exception):
    """The root. `code` is one of the class's `CODES`; `next_step` tells a person what to do.

    `step` is the next step as data, for surfaces that word it otherwise. `parameters`: what the error is about, by
    name: `adapter`, `alias`, `base`. `candidates`: what may have been meant. `operator_detail`: what the logs say and
    the response does not.
    """

    TITLE: ClassVar[str] = "The registry failed"
    CODES: ClassVar[frozenset[str]] = frozenset({"INTERNAL"})

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        findings: Iterable[Finding] = (),
        next_step: NextStep | str = "",
        retry_after_seconds: int | None = None,
        parameters: Mapping[str, str] | None = None,
        candidates: Iterable[str] = (),
        operator_detail: str = "",
    ) -> None:
        if code not in self.CODES:
            raise ValueError(f"{type(self).__name__} has no code {code!r}")
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.findings = tuple(findings)
        self.step = next_step if isinstance(next_step, NextStep) else None
        self.next_step = next_step.as_command() if isinstance(next_step, NextStep) else next_step
        self.parameters = dict(parameters or {})
        self.candidates = tuple(candidates)
        self.operator_detail = operator_detail
        self.retry_after_seconds = retry_after_seconds

    def to_problem(self) -> dict[str, Any]:
        """The body of an `application/problem+json` response (RFC 9457), without status and request id."""
        problem: dict[str, Any] = {
            "type": "about:blank",
            "title": self.TITLE,
            "code": self.code,
            "detail": self.detail,
            "findings": [finding.to_dict() for finding in self.findings],
        }
        if self.next_step:
            problem["next_step"] = self.next_step
        if self.parameters:
            problem["parameters"] = self.parameters
        if self.candidates:
            problem["candidates"] = list(self.candidates)
        if self.retry_after_seconds is not None:
            problem["retry_after_seconds"] = self.retry_after_seconds
        return problem

    @classmethod
    def from_finding(cls, code: str, finding: Finding, *, next_step: NextStep | str = "") -> Self:
        """The error for one broken rule."""
        return cls(code, f"{finding.location} {finding.message}", findings=[finding], next_step=next_step)


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


class NotFound(RegistryError):
    TITLE = "Not found"
    CODES = _codes("""
        ADAPTER_UNKNOWN VERSION_UNKNOWN ALIAS_UNKNOWN BLOB_UNKNOWN BASE_UNKNOWN JOB_UNKNOWN CAMPAIGN_UNKNOWN
        PUSH_UNKNOWN TOKEN_UNKNOWN NAMESPACE_UNKNOWN PUBLISHER_UNKNOWN EVENT_UNKNOWN WEBHOOK_UNKNOWN ROUTE_UNKNOWN
        VERSION_DELETED ADAPTER_DELETED CONTEXT_UNKNOWN
    """)


class Invalid(RegistryError):
    TITLE = "The input breaks a rule"
    CODES = _codes("""
        REQUEST_INVALID NAME_INVALID DIGEST_INVALID MANIFEST_INVALID PROVENANCE_INVALID FOLDER_INVALID FILE_REFUSED
        TENSORS_INVALID CONFIG_INVALID GOLDEN_INVALID BASE_INVALID BLOB_MISMATCH SETTING_INVALID RECIPE_INVALID
        CONVERSION_INVALID SIGNATURE_INVALID URL_REFUSED LENGTH_REQUIRED TEST_UNSUPPORTED EXTRA_MISSING
    """)


class TooLarge(RegistryError):
    TITLE = "The input is over a limit"
    CODES = _codes("SIZE_INVALID QUOTA_EXCEEDED")


class Conflict(RegistryError):
    TITLE = "Conflict with the current state"
    CODES = _codes("""
        ALIAS_MOVED ALIAS_IN_USE PARENT_MOVED PRECONDITION_REQUIRED LEASE_LOST JOB_STATE UPLOAD_INCOMPLETE BASE_EXISTS
        BASE_IN_USE TOKEN_EXISTS TOKEN_REVOKED KEY_NOT_LOST NAME_TAKEN NAME_TOMBSTONED NAMESPACE_IN_USE SCHEMA_OLD
        ADAPTER_IN_USE IDEMPOTENCY_REUSED COMMIT_INCOMPLETE VERSION_IN_USE VERSION_TOMBSTONED
    """)


class Refused(RegistryError):
    TITLE = "Refused"
    CODES = _codes("""
        GATE_CLOSED VERDICT_FAILED INCOMPATIBLE YANKED QUARANTINED HUB_UNSUPPORTED
    """)


class Unauthenticated(RegistryError):
    TITLE = "Sign in"
    CODES = _codes("UNAUTHORIZED")


class Denied(RegistryError):
    TITLE = "Not allowed"
    CODES = _codes("DENIED")


class Unavailable(RegistryError):
    TITLE = "Try again later"
    CODES = _codes("""
        STORE_UNAVAILABLE DATABASE_UNAVAILABLE SERVER_UNREACHABLE TRY_LATER BODY_STALLED RATE_LIMITED
        LINK_INVALID
    """)


class Corrupt(RegistryError):
    TITLE = "Damaged or wrong data"
    CODES = _codes("DATABASE_DAMAGED DIGEST_MISMATCH LOG_INCONSISTENT LOG_KEY_REPLACED RESPONSE_INVALID")


class LocalFault(RegistryError):
    TITLE = "This machine cannot go on"
    CODES = _codes("LOCAL_FAULT")


CLASSES: tuple[type[RegistryError], ...] = tuple(RegistryError.__subclasses__())


def printable(text: str, limit: int) -> str:
    """Escape what does not print (control characters, lone surrogates), and cut the text.

    Messages quote adapters, libraries and other servers. People read them in terminals; PostgreSQL stores no U+0000.
    """
    text = text[:limit]
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)[:limit]


def invalid_cursor() -> Invalid:
    """The error for a cursor that the list or run did not return."""
    return Invalid("REQUEST_INVALID", "invalid cursor: pass `next_cursor` unchanged")


CLASS_OF_CODE: dict[str, type[RegistryError]] = {code: cls for cls in CLASSES for code in cls.CODES}


def from_problem(problem: Mapping[str, Any]) -> RegistryError:
    """The exception that the other side raised, rebuilt from its problem body.

    `Corrupt` (RESPONSE_INVALID) for a code that this version does not know: of a newer server, or of another program.
    """
    code = str(problem.get("code", ""))
    cls = CLASS_OF_CODE.get(code)
    detail = str(problem.get("detail") or problem.get("title") or "the server gave no reason")[:_DETAIL_LIMIT]
    items = problem.get("findings")
    findings = [
        finding for item in (items[:_FINDINGS_LIMIT] if isinstance(items, list) else ()) if isinstance(item, Mapping)
        if (finding := Finding.from_dict(item)) is not None
    ]  # fmt: skip
    seconds = problem.get("retry_after_seconds")
    retry = seconds if isinstance(seconds, int) and 0 <= seconds <= RETRY_AFTER_LIMIT_SECONDS else None
    if cls is None:
        unknown = f"the registry responded with the error {code[:80]!r}, which this version does not know: {detail}"
        return Corrupt("RESPONSE_INVALID", unknown, findings=findings)
    return cls(
        code, detail, findings=findings, next_step=str(problem.get("next_step") or "")[:_NEXT_STEP_LIMIT],
        retry_after_seconds=retry, parameters=_texts_of(problem.get("parameters")),
    )  # fmt: skip


def _texts_of(value: Any) -> dict[str, str]:
    """The texts in an object of another side's problem."""
    items = islice(value.items(), _PARAMETERS_LIMIT) if isinstance(value, Mapping) else ()
    return {str(name)[:100]: text[:_PARAMETER_LIMIT] for name, text in items if isinstance(text, str)}
