"""Compares every answer of a registry with the question. A registry may be hostile, taken over or misconfigured.

Each function returns the answer, or raises `Corrupt` that names the field. Bytes are verified where they arrive
(transfer/file_transfer.py), links where they are followed (transport/connection.py), and limits of size and time by
transport/http_transport.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from registry import names
from registry.api import Problem
from registry.api.catalog import AdapterView, Resolved, VersionView
from registry.api.transfer import PullPlan, PushItem, PushPlan, PushResult, Upload
from registry.client.transport import wrong_answer
from registry.client.transport.responses import Shape, error_of_problem
from registry.digest import Digest, DigestPrefix
from registry.errors import RegistryError
from registry.names import AdapterName, Ref, is_served_name
from registry.versions.manifest import Manifest

if TYPE_CHECKING:  # a push and a pull do not load these schemas
    from registry.api.aliases import (
        AliasView,
        ApprovalView,
        ApproveItem,
        DescribedSubject,
        DescribeItem,
        MovedAlias,
        MoveItem,
    )
    from registry.api.bases import BaseView
    from registry.api.evaluation import NormsView
    from registry.api.jobs import Claimed
    from registry.api.serving import DesiredAdapter, DesiredState
    from registry.jobs import Job

Item = TypeVar("Item")
Result = TypeVar("Result", covariant=True)
Version = TypeVar("Version", VersionView, Resolved, "NormsView", "MovedAlias")
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


def check_version(ref: Ref, answer: Version) -> Version:
    """The version that `ref` names: the same name, and the number or the digest that was requested."""
    _equal(f"the name of {ref}", answer.name, str(ref.name))
    if isinstance(ref.selector, int):
        _equal(f"the number of {ref}", answer.number, ref.selector)
    return check_digests(ref, [answer.digest], answer)


def check_digests(ref: Ref, digests: Iterable[Digest], answer: Shape) -> Shape:
    """An answer about these digests, each of which must be the one that `ref` names, if it names one."""
    if isinstance(ref.selector, Digest | DigestPrefix):
        for digest in digests:
            _equal(f"the digest in an answer about {ref}", digest[: len(ref.selector)], ref.selector)
    return answer


def check_adapter(name: AdapterName, answer: AdapterView) -> AdapterView:
    """The adapter of this name."""
    _equal(f"the name of {name}", answer.name, str(name))
    return answer


def check_alias(name: str, answer: AliasView) -> AliasView:
    """The alias of this name."""
    _equal("the name of the alias", answer.alias, name)
    return answer


def check_move(item: MoveItem, answer: MovedAlias) -> None:
    """The requested alias, at the requested number or digest."""
    selector = Ref.parse(item.version).selector if "/" in item.version else names.selector(item.version or names.NEWEST)
    check_version(Ref(AdapterName.parse(item.name), selector), answer)
    check_alias(item.alias, answer)


def check_approval(item: ApproveItem, answer: ApprovalView) -> None:
    """The approval for the requested alias, of the requested number."""
    ref = Ref.parse(item.ref)
    _equal(f"the alias of the approval of {ref}", answer.alias, item.alias)
    if isinstance(ref.selector, int):
        _equal(f"the number of {ref}", answer.number, ref.selector)


def check_description(item: DescribeItem, answer: DescribedSubject) -> None:
    """The requested adapter, or a version of it by its number. Callers name it in their next request."""
    ref = Ref.parse(item.subject)
    is_version = ":" in item.subject or "@" in item.subject
    name, _, number = answer.subject.rpartition("@") if is_version else (answer.subject, "", "")
    _equal(f"the subject of {item.subject}", name, str(ref.name))
    if is_version and not (number.isascii() and number.isdigit()):
        raise wrong_answer(f"the number of {item.subject} is {number[:80]!r}")
    if isinstance(ref.selector, int):
        _equal(f"the number of {ref}", number, str(ref.selector))


def check_base(name: str, answer: BaseView) -> BaseView:
    """The base that has this name or this alias."""
    if name not in answer.aliases:
        _equal("the name of the base", answer.name, name)
    return check_spec(answer)


def check_spec(answer: BaseView) -> BaseView:
    """A base whose name and fingerprint are those of its spec."""
    _equal(f"the name in the spec of the base {answer.name[:80]!r}", answer.spec.name, answer.name)
    _equal(f"the fingerprint of the base {answer.name[:80]!r}", answer.fingerprint, answer.spec.fingerprint)
    return answer


def all_pages(fetch: Callable[[str], Page]) -> Iterator[Page]:
    """Every page of a list: `fetch` takes a cursor, at first an empty one. Each page must move the cursor."""
    cursor = ""
    for _ in range(PAGES_LIMIT):
        page = fetch(cursor)
        yield page
        if not page.next_cursor:
            return
        if page.next_cursor == cursor:
            raise wrong_answer(f"a page of a list continues at its own cursor {cursor[:80]!r}")
        cursor = page.next_cursor
    raise wrong_answer(f"a list has over {PAGES_LIMIT} pages")


def check_resolved(ref: Ref, answer: Resolved) -> Resolved:
    """`check_version`, and its manifest hashes to its digest and lists exactly the files that have links."""
    check_version(ref, answer)
    _equal(f"what the manifest of {ref} hashes to", _digest_of(answer.manifest, ref), answer.digest, "DIGEST_MISMATCH")
    promised = sorted((file.path, file.media_type, file.digest, file.size_bytes) for file in answer.manifest.files)
    linked = sorted((file.path, file.media_type, file.digest, file.size_bytes) for file in answer.files)
    if promised != linked:
        path = next((file[0] for file in (*promised, *linked) if file not in linked or file not in promised), "a file")
        raise wrong_answer(f"the files of {ref} are not those of its manifest: {path}", "DIGEST_MISMATCH")
    return answer


def check_outcomes(
    items: Sequence[Item], answer: Sequence[_Outcome[Result]], check: Callable[[Item, Result], object] | None = None
) -> list[Result | RegistryError]:
    """The results and errors of a bulk request of these items. `check` compares an item with its result."""
    _equal("the number of outcomes", len(answer), len(items))
    results: list[Result | RegistryError] = []
    for item, outcome in zip(items, answer, strict=True):
        if outcome.problem is not None:
            results.append(error_of_problem(outcome.problem.model_dump()))
        elif outcome.result is not None:
            if check is not None:
                check(item, outcome.result)
            results.append(outcome.result)
        else:
            raise wrong_answer("an outcome has neither a result nor a problem")
    return results


def check_pull_plan(ref: Ref, answer: PullPlan) -> None:
    """The plan of the version that `ref` names."""
    check_resolved(ref, answer.resolved)


def check_push_plan(item: PushItem, answer: PushPlan) -> None:
    """A plan for this push, whose uploads are files of it, each once."""
    if item.manifest.base is not None:
        _equal("the base in the push plan", answer.base, item.manifest.base)
    manifest = item.manifest.with_base(answer.base)
    _equal("the digest in the push plan", answer.digest, manifest.digest)
    sizes = {file.digest: file.size_bytes for file in manifest.files}
    if len({upload.digest for upload in answer.uploads}) != len(answer.uploads):
        raise wrong_answer("the push plan requests a file twice")
    for upload in answer.uploads:
        _equal(f"the size of {upload.digest.short} in the push plan", upload.size_bytes, sizes.get(upload.digest))
        _check_upload(upload)


def _check_upload(upload: Upload) -> None:
    _equal("the method of an upload", upload.method, "PUT")
    ends_at = 0
    for part in sorted(upload.parts, key=lambda part: part.start):
        if part.start < ends_at or part.size_bytes < 1 or part.start + part.size_bytes > upload.size_bytes:
            raise wrong_answer(f"part {part.number} of {upload.digest.short} is outside of the file")
        ends_at = part.start + part.size_bytes
    for name, value in upload.headers.items():
        if not _HEADER.fullmatch(name) or not _HEADER_VALUE.fullmatch(value) or name.lower() == "authorization":
            raise wrong_answer(f"the header {name[:64]!r} of an upload is not allowed")


def check_push_result(name: AdapterName, digest: Digest, answer: PushResult) -> PushResult:
    """The pushed version."""
    check_version(Ref(name, digest), answer.version)
    return answer


def check_desired_state(base: str, alias: str, answer: DesiredState) -> DesiredState:
    """The desired state of this base and alias. Its entries are checked one by one (`problem_of`)."""
    _equal("the base of the desired state", answer.base, base)
    _equal("the alias of the desired state", answer.alias, alias)
    return answer


def problem_of(entry: DesiredAdapter) -> str:
    """Why an entry of a desired state cannot be used, so that one wrong entry does not block the others; or empty.

    Its served name becomes the name of a folder, and its name a path of a request.
    """
    if not is_served_name(entry.served_name):
        return f"the registry names it {entry.served_name[:80]!r}, which is not a valid served name"
    try:
        AdapterName.parse(entry.name)
    except RegistryError as e:
        return f"the registry answers with an invalid name: {e.detail}"
    return ""


def check_job(job_id: str, answer: Job) -> Job:
    """The job with this id."""
    _equal("the id of the job", answer.id, job_id)
    return answer


def check_claim(kinds: Collection[str], bases: Collection[str], answer: Claimed) -> Claimed:
    """A job of a requested kind and base, with the version that it is about."""
    if kinds and answer.job.kind not in set(kinds):
        raise wrong_answer(f"job {answer.job.id} is of the kind {str(answer.job.kind)!r}, which was not requested")
    if bases and answer.job.base not in bases:
        raise wrong_answer(f"job {answer.job.id} is for the base {answer.job.base[:80]!r}, which was not requested")
    if answer.base is not None:
        _equal(f"the base of job {answer.job.id}", answer.base.name, answer.job.base)
        check_spec(answer.base)
    if answer.subject is not None:
        try:
            name = Ref.parse(answer.job.subject).name
        except RegistryError as e:
            raise wrong_answer(f"job {answer.job.id} is about an invalid name: {e.detail}") from e
        digest = answer.job.subject_digest or answer.subject.digest
        check_resolved(Ref(name, digest), answer.subject)
    return answer


def _digest_of(manifest: Manifest, ref: Ref) -> Digest:
    try:
        return manifest.digest
    except RegistryError as e:
        raise wrong_answer(f"the manifest of {ref} has no canonical form: {e.detail}") from e


def _equal(field: str, actual: object, expected: object, code: str = "ANSWER_INVALID") -> None:
    if actual != expected:
        raise wrong_answer(f"{field} is {str(actual)[:120]!r}, not {str(expected)[:120]!r}", code)
