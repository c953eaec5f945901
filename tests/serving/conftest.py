"""A way to the registry that can be counted, cut and spoilt; a shelf; a clock that stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from registry.serving.shelf import Shelf
from tests.world import World


class Line(httpx.BaseTransport):
    """The way to the registry: counts requests, can be cut, can spoil the bytes of files."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner, self.paths, self.cut = inner, list[str](), False
        self.spoil: Callable[[bytes], bytes] | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.cut:
            raise httpx.ConnectError("the registry is away", request=request)
        self.paths.append(request.url.path)
        answer = self._inner.handle_request(request)
        if self.spoil is None or "/files/" not in request.url.path:
            return answer
        body = self.spoil(b"".join(answer.stream))  # type: ignore[arg-type]
        return httpx.Response(answer.status_code, content=body)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.connection.PAUSE_LIMIT_SECONDS", 0.0)


@pytest.fixture
def line(world: World) -> Line:
    world.add_base()
    return Line(world.transport)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
