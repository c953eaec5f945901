"""`LinkListener`: accepts the connections of a server and decides who handles each request.

- A request with a valid signed link is handled by a thread, which also handles the next ones of the same owner if they
  follow at once. Then the connection comes back here. With any other request it goes to the application, together with
  the bytes that were read, and comes back when a request with a link begins on it. So a proxy may use one for both.
- Threads are `SLOTS`. If none is free the application responds with 503, so no one waits in a queue. A person may have
  as many as are still free, up to a limit, and the tokens of one namespace have a limit together: slow transfers of
  some leave threads to the rest. A connection that waits longer than `NEXT_SECONDS` for a request, or for the rest of
  its head, holds no thread; nor does one that waits at all while many threads are busy.
- `stop` accepts nothing new and lets transfers end.
"""

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from registry.server.http.request_log import RequestLog
from registry.server.local_links import connections
from registry.server.local_links.backend import LinkBackend
from registry.server.local_links.connections import ConnectionLimits
from registry.server.local_links.exchange import Exchange, ReceiveBuffer
from registry.server.local_links.request import LINK_HEAD_LIMIT_BYTES, LinkRequest, may_become_link, read_request
from registry.server.storage.signed_links import LinkSigner, SignedLink

SLOTS = 64
SLOTS_PER_PERSON = 16
SLOTS_PER_GROUP = 48
"""For one subject, with all its tokens, or one token without a subject; and for the tokens of one namespace."""
NEXT_SECONDS = 0.05
"""How long a thread waits for the next request of its connection. To be woken by the event loop costs a thread 1 ms."""
KEPT_SLOTS = SLOTS // 8
"""If more threads are busy, none waits: others need its slot."""
ACCEPTED_AT_ONCE = 100
ACCEPT_AGAIN_SECONDS = 1.0
COUNT_AGAIN_SECONDS = 0.05
_LOG = logging.getLogger("registry.server")

MakeProtocol = Callable[[bytes, Callable[[socket.socket, bytes], None], Callable[[], None]], asyncio.Protocol]
"""Makes the application's protocol for one connection: with the bytes that were read from it, a function that takes it
back when a request with a link begins, and one that is called once when it has ended."""


@dataclass(slots=True, eq=False)
class _Connection:
    """`received` are the bytes of the next request so far."""

    socket: socket.socket
    address: str
    received: bytes = b""
    deadline: asyncio.TimerHandle | None = None


class LinkListener:
    """Runs on the event loop, and records each response in `requests`."""

    def __init__(
        self, listener: socket.socket, signer: LinkSigner, context: LinkBackend, *, make_protocol: MakeProtocol,
        limits: ConnectionLimits, requests: RequestLog,
    ) -> None:  # fmt: skip
        self._listener = listener
        self._signer = signer
        self._context = context
        self._make_protocol = make_protocol
        self._limits = limits
        self._requests = requests
        self._pool = ThreadPoolExecutor(SLOTS, thread_name_prefix="link")
        self._loop = asyncio.get_running_loop()
        self._waiting: set[_Connection] = set()
        self._in_threads: set[_Connection] = set()
        self._slots: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread_ended = asyncio.Event()

    def start(self, backlog: int) -> None:
        """Begin to accept connections."""
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self._loop.add_reader(self._listener, self._accept)

    async def stop(self, seconds: float) -> None:
        """Close the listener and idle connections, and let transfers end for a few seconds; then end them."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for connection in list(self._waiting):
            self._close(connection)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._until_threads_end()
        for connection in self._in_threads:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        await self._until_threads_end()
        self._pool.shutdown(wait=False)

    async def _until_threads_end(self) -> None:
        while self._in_threads:
            self._thread_ended.clear()
            await self._thread_ended.wait()

    # ---------------------------------------------------------------- connections
    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:  # no descriptor is free
                _LOG.error("cannot accept connections: %s", e.strerror or e)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._accept_again)
                return
            accepted.setblocking(False)
            self._admit(_Connection(accepted, str(peer[0])))

    def _accept_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def _admit(self, connection: _Connection, *, again: bool = True) -> None:
        """Count a connection, or close it if it is one too many. Others may have ended unnoticed: count twice."""
        if self._limits.add(connection.address):
            with contextlib.suppress(OSError):
                connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._wait(connection)
        elif again:
            self._loop.call_later(COUNT_AGAIN_SECONDS, partial(self._admit, connection, again=False))
        else:
            connection.socket.close()

    def _wait(self, connection: _Connection) -> None:
        """Wait for the next request of a connection."""
        self._waiting.add(connection)
        connection.deadline = self._loop.call_later(connections.HEAD_SECONDS, self._expire, connection)
        self._loop.add_reader(connection.socket, self._read, connection)
        if connection.received:
            self._decide(connection)

    def _stop_waiting(self, connection: _Connection) -> None:
        if connection in self._waiting:
            self._waiting.remove(connection)
            self._loop.remove_reader(connection.socket)
        if connection.deadline is not None:
            connection.deadline.cancel()

    def _expire(self, connection: _Connection) -> None:
        if connection.received:
            with contextlib.suppress(OSError):
                connection.socket.send(connections.refusal(b"408 Request Timeout"))
        self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._stop_waiting(connection)
        connection.socket.close()
        self._limits.remove(connection.address)

    def _read(self, connection: _Connection) -> None:
        try:
            received = connection.socket.recv(LINK_HEAD_LIMIT_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            received = b""
        if not received:
            self._close(connection)
            return
        connection.received += received
        self._decide(connection)

    def _decide(self, connection: _Connection) -> None:
        """Decide who handles the request that has begun to arrive."""
        if may_become_link(connection.received):
            return
        self._stop_waiting(connection)
        request = read_request(connection.received, self._signer)
        if request is not None and self._has_slot(request.link):
            self._slots.update(_shares_of(request.link))
            self._in_threads.add(connection)
            self._pool.submit(self._exchange, connection, request)
        else:
            self._hand_over(connection)

    def _has_slot(self, link: SignedLink) -> bool:
        person, group = _shares_of(link)
        is_fair = not link.group or self._slots[group] < SLOTS_PER_GROUP
        return is_fair and self._slots[person] < min(SLOTS_PER_PERSON, SLOTS - len(self._in_threads))

    def _hand_over(self, connection: _Connection) -> None:
        task = self._loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: _Connection) -> None:
        def take_back(sock: socket.socket, received: bytes) -> None:
            self._wait_or_close(_Connection(sock, connection.address, received))

        def ended() -> None:
            self._limits.remove(connection.address)

        def make() -> asyncio.Protocol:
            return self._make_protocol(connection.received, take_back, ended)

        try:
            await self._loop.connect_accepted_socket(make, connection.socket)
        except OSError:  # it is closed already
            connection.socket.close()
            ended()

    def _wait_or_close(self, connection: _Connection) -> None:
        if self._context.is_stopping():
            self._close(connection)
        else:
            self._wait(connection)

    # ---------------------------------------------------------------- threads
    def _exchange(self, connection: _Connection, request: LinkRequest) -> None:
        """Handle one request, and those that follow at once, in a thread."""
        shares = _shares_of(request.link)
        following: LinkRequest | None = request
        buffer = ReceiveBuffer()
        is_reusable = False
        try:
            while following is not None:
                exchange = Exchange(connection.socket, following, self._context, connection.received, buffer)
                is_reusable = exchange.run()
                connection.received = exchange.rest
                if exchange.status:
                    self._requests.record(exchange.describe())
                following = self._read_next(connection, shares) if is_reusable else None
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._end_exchange, connection, shares, is_reusable)

    def _read_next(self, connection: _Connection, shares: tuple[str, str]) -> LinkRequest | None:
        """Read the next request if it follows at once and counts for the same owner. None leaves it to the loop."""
        if len(self._in_threads) > KEPT_SLOTS:
            return None
        with contextlib.suppress(OSError):  # nothing came; a closed connection is noticed by the loop
            connection.socket.settimeout(NEXT_SECONDS)
            try:
                connection.received = connection.received or connection.socket.recv(LINK_HEAD_LIMIT_BYTES)
            finally:
                connection.socket.setblocking(False)
        request = read_request(connection.received, self._signer)
        return request if request is not None and _shares_of(request.link) == shares else None

    def _end_exchange(self, connection: _Connection, shares: tuple[str, str], is_reusable: bool) -> None:
        self._in_threads.remove(connection)
        self._slots -= Counter(shares)
        if is_reusable:
            self._wait_or_close(connection)
        else:
            self._close(connection)
        self._thread_ended.set()


def _shares_of(link: SignedLink) -> tuple[str, str]:
    return f"person {link.person}", f"group {link.group}"
