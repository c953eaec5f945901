"""The REST contract of an error: one shape for all of them (RFC 9457).

Example
    {"title": "Not found", "status": 404, "code": "BASE_UNKNOWN", "detail": "there is no base 'llama'", …}
"""

from __future__ import annotations

from registry.api import Answer
from registry.errors import Reason


class Problem(Answer):
    """An error. `code` is for programs and never changes its meaning, `detail` and `next_step` are for people.

    `findings` lists every broken rule. `retry_after_seconds` is the header Retry-After.
    """

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    findings: list[Reason] = []
    request_id: str
    next_step: str = ""
    retry_after_seconds: int | None = None
