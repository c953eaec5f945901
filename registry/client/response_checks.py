"""Compares every response of a registry with its request. A registry may be hostile, taken over or misconfigured.

`check_echo` compares what the row of an operation says. The others check what a row cannot say: hashes, links, names
that become paths, and what a caller relies on. Each raises `Corrupt` that names the field. Bytes are verified where
they arrive (transfer/file_transfer.py), links where they are followed (transport/links.py), and limits of size and time
by transport/http_transport.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from registry import names
from registry.api.catalog import AdapterView, Resolved, VersionView
from registry.api.models import Problem
from registry.api.operations import adapters
from registry.api.operations.operation import ABSENT, PRESENT, Operation
from registry.api.transfer import PullPlan, PushItem, PushPlan, PushResult, Upload
from registry.client.transport import invalid_response
from registry.client.transport.responses import Shape, error_of_problem
from registry.digest import Digest, DigestPrefix
from registry.errors import Corrupt, RegistryError
from registry.evaluation.verdicts import Check, Outcome
from registry.names import AdapterName, Ref
from registry.versions.manifest import Manifest

if TYPE_CHECKING:  # a push and a pull do not load these schemas
    from registry.api.access import RoleGrant, SubjectRoles
    from registry.api.aliases import DescribedSubject, DescribeItem
    from registry.api.audit.attestations import AttestationView
    from registry.api.bases import BaseView
    from registry.api.evaluation import VerdictList
    from registry.api.jobs import Claimed, JobSubmit
    from registry.api.lineage import Lineage, LineageNode
    from registry.api.serving import DesiredAdapter, DesiredState, NodeReport, ReportAccepted
    from registry.jobs import Job

Item = TypeVar("Item")
Result = TypeVar("Result", covariant=True)
Version = TypeVar("Version", VersionView, Resolved, "LineageNode")
PAGES_LIMIT = 10_000
"""Pages of one list (of tokens or adapters, millions of items), or of one run, each of a few seconds."""
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{0,2000}")


class _Outcome(Protocol[Result]):
    @property
    def result(self) -> Result | None: ...
    @property
    def problem(self) -> Problem | None: ...


class _Page(Protocol):
    @property
    def next_cursor(self) -> str: ...


Page = TypeVar("Page", bound=_Page)


class _Listing(Protocol):
    @property
    def items(self) -> Sequence[Any]: ...


Listing = TypeVar("Listing", bound=_Listing)


def check_echo(
    operation: Operation[Any, Any], parameters: Mapping[str, object], request: object, response: Any
) -> None:
    """The response repeats the parameters and the fields of its request that its row names (`Operation.echo`).

    A parameter that a request leaves empty, or lacks, asks for nothing.
    """
    for field, parameter in operation.echo.items():
        for actual in _values(response, field.split(".")):
            if parameter in (PRESENT, ABSENT):
                _equal(f"whether the response has {field}", actual is not None, parameter == PRESENT)
                continue
            expected = parameters[parameter] if parameter in parameters else _value(request, parameter)
            if expected not in (None, "") and not _repeats(actual, expected):
                raise _mismatch(f"the field {field} of the response", actual, expected)


def _values(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """The values at this path: of a list on the way those of each item."""
    if not path:
        yield value
        return
    inner = getattr(value, path[0])
    for item in inner if len(path) > 1 and isinstance(inner, Sequence) else [inner]:
        yield from _values(item, path[1:])


def _value(request: object, path: str) -> object:
    try:
        return attrgetter(path)(request)
    except AttributeError:
        return None


def _repeats(actual: Any, expected: Any) -> bool:
    if isinstance(expected, DigestPrefix):
        return str(actual).startswith(expected)
    if isinstance(expected, Mapping):  # changes: null removes a key
        return {key: actual.get(key) for key in expected} == dict(expected)
    if isinstance(actual, Sequence) and not isinstance(actual, str):
        return set(actual) == ({expected} if isinstance(expected, str) else set(expected))
    return bool(actual == expected)


def parameters_of(about: Ref | AdapterName | None) -> dict[str, object]:
    """The parameters by which a row names what a request is about."""
    if about is None:
        return {}
    name, selector = (about.name, about.selector) if isinstance(about, Ref) else (about, None)
    parameters: dict[str, object] = {"namespace": name.namespace, "name": name.name, "adapter": str(name)}
    if isinstance(selector, int):
        parameters["number"] = selector
    elif isinstance(selector, Digest | DigestPrefix):
        parameters["digest"] = selector
    return parameters if selector is None else parameters | {"selector": selector}


def check_version(ref: Ref, response: Version) -> Version:
    """The version that `ref` names: the same name, and the number or the digest that was requested."""
    check_echo(adapters.SHOW_VERSION, parameters_of(ref), None, response)
    return response


def check_fields(response: Shape, **expected: object) -> Shape:
    """A response with these values of its request in its fields."""
    for name, value in expected.items():
        _equal(f"the field {name} of the response", getattr(response, name), value)
    return response


def check_item(operation: Operation[Any, Any], item: Any, response: Any) -> None:
    """The result of one item of a bulk request, as `check_echo`."""
    about = Ref.parse(item.ref) if hasattr(item, "ref") else ref_of(item.name, item.version)
    check_echo(operation, parameters_of(about), item, response)


def _check_number(ref: Ref, number: int | None) -> None:
    if isinstance(ref.selector, int):
        _equal(f"the number of {ref}", number, ref.selector)


def check_digests(ref: Ref, digests: Iterable[str], response: Shape) -> Shape:
    """A response about these digests, each of which must be the one that `ref` names, if it names one."""
    if isinstance(ref.selector, Digest | DigestPrefix):
        for digest in digests:
            _equal(f"the digest in a response about {ref}", digest[: len(ref.selector)], ref.selector)
    return response


def check_namespace(namespace: str, responses: Iterable[AdapterView]) -> None:
    """Adapters of this namespace. Callers change what a list names."""
    for response in responses:
        _equal(f"the namespace of {response.name[:80]!r}", response.name.partition("/")[0], namespace)


def ref_of(name: str, version: str) -> Ref:
    """The version of an adapter that a selector or a ref names."""
    return Ref(
        AdapterName.parse(name),
        Ref.parse(version).selector if "/" in version else names.selector(version or names.NEWEST),
    )


def check_description(item: DescribeItem, response: DescribedSubject) -> None:
    """The requested adapter, or a version of it by its number. Callers name it in their next request."""
    ref = Ref.parse(item.subject)
    is_version = ":" in item.subject or "@" in item.subject
    name, _, number = response.subject.rpartition("@") if is_version else (response.subject, "", "")
    _equal(f"the subject of {item.subject}", name, str(ref.name))
    if is_version and not (number.isascii() and number.isdigit()):
        raise invalid_response(f"the number of {item.subject} is {number[:80]!r}")
    if isinstance(ref.selector, int):
        _equal(f"the number of {ref}", number, str(ref.selector))


def check_base(name: str, response: BaseView) -> BaseView:
    """The base that has this name or this alias."""
    if name not in response.aliases:
        _equal("the name of the base", response.name, name)
    return check_spec(response)


def check_spec(response: BaseView) -> BaseView:
    """A base whose name and fingerprint are those of its spec."""
    _equal(f"the name in the spec of the base {response.name[:80]!r}", response.spec.name, response.name)
    _equal(f"the fingerprint of the base {response.name[:80]!r}", response.fingerprint, response.spec.fingerprint)
    return response


def all_pages(fetch: Callable[[str], Page]) -> Iterator[Page]:
    """Every page of a list: `fetch` takes a cursor, at first an empty one. Each page must move the cursor."""
    cursor = ""
    for _ in range(PAGES_LIMIT):
        page = fetch(cursor)
        yield page
        if not page.next_cursor:
            return
        if page.next_cursor == cursor:
            raise invalid_response(f"a page of a list continues at its own cursor {cursor[:80]!r}")
        cursor = page.next_cursor
    raise invalid_response(f"a list has over {PAGES_LIMIT} pages")


def check_resolved(ref: Ref, response: Resolved) -> Resolved:
    """`check_version`, and its manifest hashes to its digest and lists exactly the files that have links."""
    check_version(ref, response)
    if problem := _problem_of_number(response.number):
        raise invalid_response(f"the number of {ref} {problem}")
    _equal(
        f"what the manifest of {ref} hashes to", _digest_of(response.manifest, ref), response.digest, "DIGEST_MISMATCH"
    )
    promised = sorted((file.path, file.media_type, file.digest, file.size_bytes) for file in response.manifest.files)
    linked = sorted((file.path, file.media_type, file.digest, file.size_bytes) for file in response.files)
    if promised != linked:
        path = next((file[0] for file in (*promised, *linked) if file not in linked or file not in promised), "a file")
        raise invalid_response(f"the files of {ref} are not those of its manifest: {path}", "DIGEST_MISMATCH")
    return response


def check_outcomes(
    items: Sequence[Item], response: Sequence[_Outcome[Result]], check: Callable[[Item, Result], object] | None = None
) -> list[Result | RegistryError]:
    """The results and errors of a bulk request of these items. `check` compares an item with its result."""
    _equal("the number of outcomes", len(response), len(items))
    results: list[Result | RegistryError] = []
    for item, outcome in zip(items, response, strict=True):
        if outcome.problem is not None:
            results.append(error_of_problem(outcome.problem.model_dump()))
        elif outcome.result is not None:
            if check is not None:
                check(item, outcome.result)
            results.append(outcome.result)
        else:
            raise invalid_response("an outcome has neither a result nor a problem")
    return results


def check_pull_plan(ref: Ref, response: PullPlan) -> None:
    """The plan of the version that `ref` names."""
    check_resolved(ref, response.resolved)


def check_push_plan(item: PushItem, response: PushPlan) -> None:
    """A plan for this push, whose uploads are files of it, each once."""
    if item.manifest.base is not None:
        _equal("the base in the push plan", response.base, item.manifest.base)
    manifest = item.manifest.with_base(response.base)
    _equal("the digest in the push plan", response.digest, manifest.digest)
    sizes = {file.digest: file.size_bytes for file in manifest.files}
    if len({upload.digest for upload in response.uploads}) != len(response.uploads):
        raise invalid_response("the push plan requests a file twice")
    for upload in response.uploads:
        _equal(f"the size of {upload.digest.short} in the push plan", upload.size_bytes, sizes.get(upload.digest))
        _check_upload(upload)


def _check_upload(upload: Upload) -> None:
    _equal("the method of an upload", upload.method, "PUT")
    ends_at = 0
    for part in sorted(upload.parts, key=lambda part: part.start):
        if part.start < ends_at or part.size_bytes < 1 or part.start + part.size_bytes > upload.size_bytes:
            raise invalid_response(f"part {part.number} of {upload.digest.short} is outside of the file")
        ends_at = part.start + part.size_bytes
    for name, value in upload.headers.items():
        if not _HEADER.fullmatch(name) or not _HEADER_VALUE.fullmatch(value) or name.lower() == "authorization":
            raise invalid_response(f"the header {name[:64]!r} of an upload is not allowed")


def check_push_result(name: AdapterName, digest: Digest, response: PushResult) -> PushResult:
    """The pushed version."""
    check_version(Ref(name, digest), response.version)
    return response


def check_engines(response: VerdictList) -> None:
    """Verdicts about engines, of which there is one at least: callers serve what no verdict refuses."""
    if not response.items or any(verdict.check is not Check.ENGINE for verdict in response.items):
        raise invalid_response("the response has no verdicts about the engines that were named")


def check_signature(bundle: str, public_key: str, signer: str, response: AttestationView) -> AttestationView:
    """The signature that was sent, of the key that was sent, or of the name in its certificate.

    Which root vouches for a certificate, or that none does, is the registry's word: clients need not have the roots.
    """
    data = bundle.encode()
    check_fields(response, bundle=bundle, digest=Digest.of(data), size_bytes=len(data), public_key=public_key)
    if public_key:
        return check_fields(response, kind="signature", identity=signer)
    identity = response.identity
    is_certified = identity.startswith(("pki:", "sigstore:")) and identity.endswith(f"/{signer}")
    if {"signature": is_certified, "unverified": identity.startswith("not verified: ")}.get(response.kind) is not True:
        raise invalid_response(f"the signature of {signer[:200]!r} is {response.kind!r} of {identity[:200]!r}")
    return response


def check_bytes(digest: Digest, data: bytes) -> None:
    """The bytes with this digest."""
    _equal("the digest of the response", Digest.of(data), digest, "DIGEST_MISMATCH")


def check_granted(granted: RoleGrant, response: SubjectRoles) -> SubjectRoles:
    """The roles of a subject, among them this one."""
    if (granted.role, sorted(granted.aliases)) not in [(role.role, role.aliases) for role in response.roles]:
        raise invalid_response(f"{response.subject[:80]!r} did not get the role {granted.role!r}")
    return response


def check_revoked(role: str, response: SubjectRoles) -> SubjectRoles:
    """The roles of a subject, without this one; without any if it is empty."""
    if any(role in ("", granted.role) for granted in response.roles):
        raise invalid_response(f"{response.subject[:80]!r} still has the role {response.roles[0].role!r}")
    return response


def check_unknown(report: NodeReport, response: ReportAccepted) -> None:
    """The response to a report: it can only miss what was reported."""
    if others := set(response.unknown) - {slot.served_name for slot in report.slots}:
        raise invalid_response(f"the registry does not know {min(others)[:80]!r}, which was not reported")


def check_desired_state(base: str, response: DesiredState) -> DesiredState:
    """The desired state of this base. Its entries are checked one by one (`problem_of`)."""
    _equal("the base of the desired state", response.base, base)
    for verb, texts in (
        ("serves two versions as", [entry.served_name for entry in response.adapters]),
        ("lists two versions of", [entry.name for entry in response.adapters]),
    ):
        if repeated := next((text for text, count in Counter(texts).items() if count > 1), ""):
            raise invalid_response(f"the desired state {verb} {repeated[:80]!r}")
    return response


def problem_of(entry: DesiredAdapter) -> str:
    """Why an entry of a desired state cannot be used, so that one wrong entry does not block the others; or empty.

    Its name becomes a path of a request. Its served name becomes the name of a folder, and what clients request: it is
    the one that follows from name and number, so that no adapter answers for another.
    """
    try:
        name = AdapterName.parse(entry.name)
    except RegistryError as e:
        return f"the registry responds with an invalid name: {e.detail}"
    if problem := _problem_of_number(entry.number):
        return f"the number of {name} {problem}"
    plain = names.served_name(name, entry.number)
    if entry.served_name not in (plain, names.distinct_served_name(plain, str(name), entry.digest)):
        return f"the served name of {name}@{entry.number} is {entry.served_name[:80]!r}, not {plain!r}"
    return ""


def _problem_of_number(number: int) -> str:
    is_possible = 1 <= number <= names.VERSION_NUMBER_LIMIT
    return "" if is_possible else f"is {str(number)[:40]}, not 1 to {names.VERSION_NUMBER_LIMIT}"


def refusal_of(entry: DesiredAdapter) -> str:
    """Why no engine may get an entry of a desired state: `problem_of`, a check or the engine's rules; or empty."""
    if problem := problem_of(entry):
        return problem
    if check := failed_check(entry.verdicts):
        return f"its check '{check}' says fail"
    if entry.engine_outcome is Outcome.FAIL:
        error = next((finding for finding in entry.findings if finding.severity == "error"), None)
        return f"the engine would not serve it as trained: {error.message if error else 'no reason is stored'}"
    return ""


def failed_check(verdicts: Mapping[str, str]) -> str:
    """The first check that says fail, or empty. Those of engines do not count: they are about one engine each."""
    failed = (check for check, outcome in sorted(verdicts.items()) if outcome == Outcome.FAIL)
    return next((check for check in failed if not check.startswith("engine ")), "")


def check_submitted(request: JobSubmit, response: Job) -> Job:
    """A job about the requested version."""
    return check_subject(Ref.parse(request.ref), response) if request.ref else response


def check_subject(ref: Ref, response: Job) -> Job:
    """A job about the version that `ref` names."""
    subject = _subject_of(response)
    _equal(f"the name in job {response.id}", str(subject.name), str(ref.name))
    if isinstance(subject.selector, int):
        _check_number(ref, subject.selector)
    return check_digests(ref, filter(None, [response.subject_digest]), response)


def check_root(response: Lineage) -> LineageNode:
    """The node of a lineage that it begins at."""
    root = next((node for node in response.nodes if node.id == response.root), None)
    if root is None:
        raise invalid_response(f"the lineage has no node {response.root[:80]!r}, at which it begins")
    return root


def check_claim(kinds: Collection[str], bases: Collection[str], response: Claimed) -> Claimed:
    """A job of a requested kind and base, with the version that it is about."""
    if kinds and response.job.kind not in set(kinds):
        raise invalid_response(
            f"job {response.job.id} is of the kind {str(response.job.kind)!r}, which was not requested"
        )
    if bases and response.job.base not in bases:
        raise invalid_response(
            f"job {response.job.id} is for the base {response.job.base[:80]!r}, which was not requested"
        )
    if response.base is not None:
        _equal(f"the base of job {response.job.id}", response.base.name, response.job.base)
        check_spec(response.base)
    if response.subject is not None:
        name = _subject_of(response.job).name
        digest = response.job.subject_digest or response.subject.digest
        check_resolved(Ref(name, digest), response.subject)
    return response


def _subject_of(job: Job) -> Ref:
    try:
        return Ref.parse(job.subject)
    except RegistryError as e:
        raise invalid_response(f"job {job.id} is about an invalid name: {e.detail}") from e


def _digest_of(manifest: Manifest, ref: Ref) -> Digest:
    try:
        return manifest.digest
    except RegistryError as e:
        raise invalid_response(f"the manifest of {ref} has no canonical form: {e.detail}") from e


def _equal(field: str, actual: object, expected: object, code: str = "RESPONSE_INVALID") -> None:
    if actual != expected:
        raise _mismatch(field, actual, expected, code)


def _mismatch(field: str, actual: object, expected: object, code: str = "RESPONSE_INVALID") -> Corrupt:
    return invalid_response(f"{field} is {str(actual)[:120]!r}, not {str(expected)[:120]!r}", code)
