"""`Versions`: the routes that a push and a pull need. Every command that moves bytes imports this module.

Names and refs are parsed before a request is sent. All other routes are methods of `Registry` (registry.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypedDict, TypeVar

from registry import names
from registry.api import catalog, transfer
from registry.api.audit import Consistency, LogKeys
from registry.api.models import ItemPage
from registry.api.operations import adapters, audit
from registry.api.operations import transfer as operations
from registry.api.operations.operation import Operation
from registry.client import response_checks
from registry.client.transport import (
    LIST_LIMIT_BYTES,
    READ_SECONDS,
    RESPONSE_LIMIT_BYTES,
    HttpResponse,
    ThroughputGuard,
    Transport,
    invalid_response,
)
from registry.client.transport.connection import Connection
from registry.client.transport.responses import parse_response
from registry.client.transport.retries import ATTEMPTS_LIMIT, PATIENT_ATTEMPTS_LIMIT, Retries
from registry.digest import Digest
from registry.errors import RegistryError, Unavailable
from registry.names import AdapterName, Ref

Received = TypeVar("Received")
Sent = TypeVar("Sent")


Page = TypeVar("Page", bound=ItemPage[Any])
Name = AdapterName | str
AnyRef = Ref | str
COMMIT_BYTES = 10 * 2**20
"""Bytes that a commit reads and copies within the store in one second, at the least."""


class Change(TypedDict, total=False):
    """How a change is made: `reason`, for its event; `dry_run`: check it, and undo it at the end."""

    reason: str
    dry_run: bool


class Versions:
    """A registry at a URL (or, with a transport, in this process). Thread-safe; close it or use it in `with`."""

    def __init__(
        self, url: str, token: str = "", transport: Transport | None = None, *,
        connection: Connection | None = None, insecure: bool = False,
    ) -> None:  # fmt: skip
        self.connection = connection or Connection(url, token, transport=transport, insecure=insecure)
        self.url = self.connection.url

    def close(self) -> None:
        """Close idle connections."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------ push and bytes
    def plan_pushes(
        self, items: Sequence[transfer.PushItem], *, excerpts: tuple[bytes, ...] = (), dry_run: bool = False
    ) -> list[transfer.PushPlan | RegistryError]:
        """Plan pushes: which blobs are missing, and where to send each. Each item has its own outcome.

        `excerpts`: what the items refer to. `dry_run`: evaluate, but keep nothing.
        """

        def plan(pending: Sequence[transfer.PushItem]) -> list[transfer.PushPlan | RegistryError]:
            request = transfer.BulkPushRequest(items=tuple(pending), excerpts=excerpts, dry_run=dry_run)
            response = self.call(operations.PLAN_PUSHES, request, patient=True)
            return response_checks.check_outcomes(pending, response.items, response_checks.check_push_plan)

        return self._repeat_unavailable(plan, items)

    def commit_pushes(
        self, items: Sequence[transfer.CommitItem], *, atomic: bool = False, size_bytes: int = 0
    ) -> list[transfer.PushResult | RegistryError]:
        """The versions, once every blob of the plans was sent or is among the `small` ones of its item.

        `atomic`: all or none. `size_bytes`: of all of it, which the registry may have to read and copy first.
        """
        seconds = READ_SECONDS + size_bytes / COMMIT_BYTES

        def commit(pending: Sequence[transfer.CommitItem]) -> list[transfer.PushResult | RegistryError]:
            request = transfer.BulkCommitRequest(items=tuple(pending), atomic=atomic)
            response = self.call(operations.COMMIT_PUSHES, request, seconds=seconds, patient=True)
            return response_checks.check_outcomes(pending, response.items)

        return self._repeat_unavailable(commit, items, all_or_none=atomic)

    def plan_pulls(
        self, refs: Sequence[AnyRef], *, patient: bool = False
    ) -> tuple[list[transfer.PullPlan | RegistryError], dict[Digest, str]]:
        """Plan pulls: the versions, with links to their files, and the bytes of small files (base64).

        `patient`: wait for a registry that restarts. An engine that loads on demand does not.
        """
        small: dict[Digest, str] = {}

        def plan(pending: Sequence[Ref]) -> list[transfer.PullPlan | RegistryError]:
            request = transfer.BulkPullRequest(refs=tuple(map(str, pending)))
            response = self.call(operations.PLAN_PULLS, request, patient=patient)
            small.update((item.digest, item.data) for item in response.small)
            return response_checks.check_outcomes(pending, response.items, response_checks.check_pull_plan)

        return self._repeat_unavailable(plan, [parsed_ref(ref) for ref in refs]), small

    def _repeat_unavailable(
        self, send: Callable[[Sequence[Sent]], list[Received | RegistryError]], items: Sequence[Sent], *,
        all_or_none: bool = False,
    ) -> list[Received | RegistryError]:  # fmt: skip
        """Send a bulk request, and again those items that the registry cannot serve yet, as long as one request."""
        outcomes: dict[int, Received | RegistryError] = {}
        pending, retries = list(range(len(items))), Retries(self.connection)
        while True:
            outcomes |= zip(pending, send([items[position] for position in pending]), strict=True)
            errors = {p: e for p in pending if isinstance(e := outcomes[p], Unavailable)}
            last = max(errors.values(), key=lambda error: error.retry_after_seconds or 0, default=None)
            limit = ATTEMPTS_LIMIT if last is not None and last.code == "RATE_LIMITED" else PATIENT_ATTEMPTS_LIMIT
            if last is None or not retries.wait(last, limit):
                return [outcomes[position] for position in range(len(items))]
            pending = pending if all_or_none else list(errors)

    @contextmanager
    def read(self, link: catalog.FileLink, *, start: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
        """The bytes of a file from `start`, chunk by chunk. `Corrupt` for more; nothing else is verified here."""
        size_bytes = link.size_bytes - start if length is None else length
        is_whole = size_bytes == link.size_bytes
        headers = {} if is_whole else {"Range": f"bytes={start}-{start + size_bytes - 1}"}
        with self.connection.stream(link.url, headers=headers) as chunks:
            yield _limited(chunks, link, size_bytes)

    # ------------------------------------------------------------ adapters, versions and bases
    def adapters(self, *, cursor: str = "", limit: int | None = None, **search: Any) -> catalog.AdapterPage:
        """One page. `search`: the fields of the route, such as base, method, rank_min, target, engine, owner, text."""
        return self.call(adapters.LIST_ADAPTERS, **search, cursor=cursor, limit=limit)

    def adapter(self, name: Name) -> catalog.AdapterView:
        """Return one adapter."""
        return self.call(adapters.SHOW_ADAPTER, about=parsed_name(name))

    def versions(
        self, name: Name, *, include_deleted: bool = False, cursor: str = "", limit: int | None = None,
        count: bool | None = None,
    ) -> catalog.VersionPage:  # fmt: skip
        """Return one page of the versions of an adapter, newest first; with `count` also how many there are."""
        return self.call(
            adapters.LIST_VERSIONS, about=parsed_name(name), deleted=include_deleted or None, cursor=cursor,
            limit=limit, count=count,
        )  # fmt: skip

    def version(self, ref: AnyRef, *, patient: bool = False) -> catalog.VersionView:
        """Return one version with its verdicts."""
        return self.call(adapters.SHOW_VERSION, about=parsed_ref(ref), patient=patient)

    def describe(self, ref: AnyRef, change: catalog.MetadataChange) -> catalog.VersionView:
        """Change description, tags and links of a version, and with a `VersionMetadataChange` its expiry."""
        request: Any = change
        return self.call(adapters.CHANGE_VERSION_METADATA, request, about=parsed_ref(ref))

    def describe_adapter(self, name: Name, change: catalog.MetadataChange) -> catalog.AdapterView:
        """Change description, tags and links of an adapter."""
        return self.call(adapters.CHANGE_ADAPTER_METADATA, change, about=parsed_name(name))

    def resolve(self, ref: AnyRef) -> catalog.Resolved:
        """Return what a ref names now, with a link to each file."""
        parsed = parsed_ref(ref)
        return response_checks.check_resolved(parsed, self.call(adapters.RESOLVE_VERSION, about=parsed))

    # ------------------------------------------------------------ following the audit log
    def checkpoint(self) -> str:
        """The note of the newest checkpoint."""
        return self.call(audit.READ_CHECKPOINT)

    def log_keys(self) -> LogKeys:
        """Return the public keys of the audit log."""
        return self.call(audit.LIST_LOG_KEYS)

    def consistency(self, old: int, new: int) -> Consistency:
        """Return the proof that a smaller log is the beginning of a larger one."""
        return self.call(audit.PROVE_CONSISTENCY, old=old, new=new)

    # ------------------------------------------------------------ any operation
    def call(
        self, operation: Operation[Sent, Received], request: Sent | None = None, *,
        about: Ref | AdapterName | None = None, repeats: Ref | None = None, headers: Mapping[str, str] | None = None,
        seconds: float | None = None, limit_bytes: int = RESPONSE_LIMIT_BYTES, patient: bool = False, **parameters: Any,
    ) -> Received:  # fmt: skip
        """Send the request of any operation; return its response, which repeats what the row of the operation says.

        `about`: the adapter or version in the path. `repeats`: the version that the response is about, if it is not
        the one in the path. `parameters`: the others of the path, and those of the query.
        """
        arguments, in_path = {**response_checks.parameters_of(about), **parameters}, operation.path_names
        query = {name: value for name, value in parameters.items() if name not in in_path}
        document: Any = request
        response = self.connection.send(
            operation.method, operation.fill_path({name: _PARSERS.get(name, str)(arguments[name]) for name in in_path}),
            json=None if document is None else document.model_dump(mode="json"), query=query, headers=headers,
            seconds=seconds, limit_bytes=limit_bytes, patient=patient, follows_links=operation.response is bytes,
        )  # fmt: skip
        return self._read(operation, response, request, {**arguments, **response_checks.parameters_of(repeats)})

    def _read(
        self, operation: Operation[Any, Received], response: HttpResponse, request: object, parameters: dict[str, Any]
    ) -> Received:
        shape: Any = operation.response
        if shape in (bytes, str):
            content: Any = response.content if shape is bytes else response.content.decode(errors="replace")
        else:
            content = parse_response(response, shape)
            if not operation.is_bulk:
                response_checks.check_echo(operation, parameters, request, content)
        received: Received = content
        return received

    def call_all(self, operation: Operation[None, Page], **query: Any) -> Page:
        """The items of all pages as the first page. All pages together have `LIST_LIMIT_BYTES`."""
        remaining_bytes = LIST_LIMIT_BYTES

        def fetch(cursor: str) -> Page:
            nonlocal remaining_bytes
            response = self.connection.send(
                "GET", operation.path, query={**query, "cursor": cursor}, limit_bytes=remaining_bytes
            )
            remaining_bytes -= len(response.content)
            return self._read(operation, response, None, query)

        first, *others = response_checks.all_pages(fetch)
        items = [*first.items, *(item for page in others for item in page.items)]
        return first.model_copy(update={"items": items, "next_cursor": ""})


_PARSERS: dict[str, Callable[[str], object]] = {
    "alias": names.alias, "base": names.base_name, "node": names.node_name, "engine": names.node_name,
}  # fmt: skip
"""Parameters of a path → what reads them before a request is sent. `Invalid` for one that is no such name."""


def only(outcomes: Sequence[Received | RegistryError]) -> Received:
    """The result of a bulk request of one. Raises its error."""
    (outcome,) = outcomes
    if isinstance(outcome, RegistryError):
        raise outcome
    return outcome


def _limited(chunks: Iterator[bytes], link: catalog.FileLink, size_bytes: int) -> Iterator[bytes]:
    guard, received = ThroughputGuard(link.url), 0
    for chunk in chunks:
        received += len(chunk)
        if received > size_bytes:
            raise invalid_response(f"{link.path}: the registry sends more than the {size_bytes} bytes requested")
        guard.moved(len(chunk))
        yield chunk


def parsed_name(name: Name) -> AdapterName:
    """The name of an adapter, from text or as it is."""
    return name if isinstance(name, AdapterName) else AdapterName.parse(name)


def parsed_ref(ref: AnyRef) -> Ref:
    """Parse a ref; one that is parsed stays as it is."""
    return ref if isinstance(ref, Ref) else Ref.parse(ref)
