"""The client of the embedded registry, imported only where a command uses that: it needs the extra `server`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from registry.client.core import Versions
from registry.client.transport.in_process import InProcess
from registry.server.embedded import open_embedded

Routes = TypeVar("Routes", bound=Versions)


@contextmanager
def open_client(routes: type[Routes], url: str) -> Iterator[Routes]:
    """A client of the registry in the data folder (REGISTRY_DATA), run in this process without a socket."""
    with (
        open_embedded() as app,
        routes(url, transport=InProcess(app)) as client,
    ):
        yield client
