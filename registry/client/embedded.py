"""The client of the embedded registry, which needs the extra `server`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from registry import lazy
from registry.client.core import Versions
from registry.client.registries import EMBEDDED_URL
from registry.errors import Invalid

Routes = TypeVar("Routes", bound=Versions)

USER = "the embedded registry"
"""What needs the extra, in the error that names it."""


@contextmanager
def open_client(routes: type[Routes]) -> Iterator[Routes]:
    """A client of the registry in the data folder (REGISTRY_DATA), run in this process without a socket.

    `Invalid` (EXTRA_MISSING): the server is not installed.
    """
    try:
        transport = lazy.load("registry.client.transport.in_process:InProcess", "server", USER)
        open_embedded = lazy.load("registry.server.embedded:open_embedded", "server", USER)
    except Invalid as e:
        e.next_step = f"set ADAPTER_REGISTRY, or run `adapter login URL`, or {e.next_step}"
        raise
    with (
        open_embedded() as app,
        routes(EMBEDDED_URL, transport=transport(app)) as client,
    ):
        yield client
