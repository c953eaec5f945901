"""Large responses count for their reader until they are sent (`Admission.memory`)."""

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from registry.server.http.admission import Space
from registry.server.http.request_actor import known_tenant, network_of_request
from registry.server.http.services import services_of

PART_BYTES = 64 * 2**10
"""Larger responses are counted, and sent in parts of this size."""


class HeldResponse(Response):
    """A response that counts for its reader until it is sent. `Unavailable` (TRY_LATER) before that."""

    def __init__(self, response: Response, space: Space, tenant: str, size_bytes: int, *, is_refusable: bool) -> None:
        super().__init__(status_code=response.status_code)
        self._response, self._space, self._tenant, self._size_bytes = response, space, tenant, size_bytes
        self._is_refusable = is_refusable

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_parts(message: Message) -> None:
            body: bytes = message.get("body", b"")
            start = 0
            while len(body) - start > PART_BYTES:  # each waits until the one before has left the server's buffer
                await send({**message, "body": body[start : start + PART_BYTES], "more_body": True})
                start += PART_BYTES
            await send({**message, "body": body[start:]} if body else message)

        with self._space.hold() as reserved:
            reserved.add(self._tenant, self._size_bytes, is_required=self._is_refusable)
            await self._response(scope, receive, send_in_parts if getattr(self._response, "body", b"") else send)


def count_response(request: Request, response: Response, *, is_change: bool) -> Response:
    """Count a large response, or one that reads a file while it is sent. That to a change is sent in any case."""
    size_bytes = getattr(response, "held_bytes", len(getattr(response, "body", b"")))
    if size_bytes <= PART_BYTES:
        return response
    memory = services_of(request).admission.memory
    tenant = known_tenant(request) or network_of_request(request)
    return HeldResponse(response, memory, tenant, size_bytes, is_refusable=not is_change)
