"""Opens the registry that a command talks to, and says what its options mean for the connection."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from registry import lazy
from registry.client import registries, response_checks
from registry.client.core import Versions
from registry.client.registry import Registry
from registry.client.trusted_checkpoints import TrustedCheckpoints
from registry.errors import LocalFault, Unavailable
from registry.filesystem import user_folder

from . import output

Routes = TypeVar("Routes", bound=Versions)
Response = TypeVar("Response")

PAGE_LIMIT = 200
UNENCRYPTED = "the token is sent unencrypted, and anyone on the network path can read it: use https"
FULL_BYTES = 2**20
"""SQLite cannot work with less free space than this."""


def data_folder() -> Path:
    """Where the embedded registry keeps its database and its bytes, unless the environment names other places."""
    return Path(os.environ.get("REGISTRY_DATA") or user_folder("data")).expanduser()


def about_embedded() -> str:
    """A sentence for whoever finds nothing and may have meant a registry elsewhere; empty if one is set."""
    return "" if registries.target().is_set else "This is the embedded registry, because no other is set. "


def note_embedded() -> None:
    """Say where something was stored, to whoever may have meant a registry elsewhere."""
    if text := about_embedded():
        output.note(f"{text}`adapter login URL` sets one, `adapter login embedded` keeps this one.")


def has_embedded() -> bool:
    """Whether the embedded registry was used before: asking it would create it."""
    return "REGISTRY_DATABASE_URL" in os.environ or (data_folder() / "registry.db").exists()


def registry(*, patient: bool = False) -> AbstractContextManager[Registry]:
    """A client of `registries.target()` with all routes.

    `patient`: of a command that pushes, pulls or waits: each of its requests waits for a registry that restarts.
    """
    return opened(Registry, patient=patient)


def versions(*, patient: bool = False) -> AbstractContextManager[Versions]:
    """A client with only the routes of a push and a pull, which takes less time to import."""
    return opened(Versions, patient=patient)


def print_response(request: Callable[[Registry], Response], text: Callable[[Response], None]) -> None:
    """Print the registry's response to one request, as JSON or by `text`."""
    with registry() as opened:
        value = request(opened)
    output.result(value, lambda: text(value))


def first_items(fetch: Callable[..., Any], limit: int | None) -> tuple[list[Any], int | None]:
    """The first `limit` items of a list, and how many it has; None without a limit, where all are read."""
    items: list[Any] = []
    total, page_limit = None, min(limit or PAGE_LIMIT, PAGE_LIMIT)
    for page in response_checks.all_pages(
        lambda cursor: fetch(cursor=cursor, limit=page_limit, count=True if limit and not cursor else None)
    ):
        items += page.items
        total = page.total if total is None else total
        if limit is not None and len(items) >= limit:
            break
    return items[:limit], total


@contextmanager
def opened(routes: type[Routes], *, patient: bool = False) -> Iterator[Routes]:
    """A client of `registries.target()` with these routes."""
    location = registries.target()
    remote = partial(routes, location.url, location.token, insecure=location.insecure)
    with embedded(routes) if location.embedded else remote() as opened:
        configure(opened)
        opened.connection.patient = patient
        trusted = trusted_checkpoints()
        trusted.watch(opened)
        opened.connection.has_responded = trusted.remembers(opened)
        yield opened


def configure(client: Versions) -> None:
    """Apply --timeout, --quiet and --verbose. Read here, because other threads have no click context."""

    def say(line: str) -> None:
        if sys.stderr.isatty():
            click.echo(output.CLEAR_LINE, nl=False, err=True)  # a progress line, which is drawn again
        output.line(output.faint(line), err=True)

    connection = client.connection
    if seconds := output.setting("timeout"):
        connection.timeout_seconds = float(seconds)
    if output.is_text() and not output.setting("quiet"):
        connection.on_wait = say
    if output.setting("verbose"):
        connection.log_requests(say)


def trusted_checkpoints() -> TrustedCheckpoints:
    """The checkpoints of audit logs that this machine trusts, beside the profile."""
    return TrustedCheckpoints(registries.profile_path().parent / "checkpoints", by_origin=registries.target().embedded)


@contextmanager
def embedded(routes: type[Routes]) -> Iterator[Routes]:
    """A client of the embedded registry. `LocalFault` if its own disk fails, `Invalid` (EXTRA_MISSING)."""
    open_client = lazy.load("registry.client.embedded:open_client")
    try:
        with open_client(routes) as client:
            client.connection.has_own_disk = "REGISTRY_BLOBS" not in os.environ
            yield client
    except Unavailable as e:
        if not _is_own_disk(e):
            raise
        next_step = f"free space on the disk of {data_folder()}, or set REGISTRY_DATA to a folder on another one"
        raise LocalFault("LOCAL_FAULT", f"the embedded registry cannot write: {e.detail}", next_step=next_step) from e


def _is_own_disk(error: Unavailable) -> bool:
    """Whether the embedded registry failed because of the disk of its data folder."""
    if error.code == "STORE_UNAVAILABLE":
        return "REGISTRY_BLOBS" not in os.environ
    return error.code == "DATABASE_UNAVAILABLE" and free_bytes(data_folder()) < FULL_BYTES


def free_bytes(folder: Path) -> int:
    """The free space on the disk of a folder, which may not be there yet."""
    return shutil.disk_usage(next(path for path in [folder, *folder.parents] if path.is_dir())).free
