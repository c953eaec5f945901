"""REST schemas of the audit log: events, entries and proofs."""

import json
from datetime import datetime
from typing import Any

from registry.api.models import ItemPage, Response
from registry.digest import canonical_json
from registry.durations import to_utc


class EventView(Response):
    """One event. `seq` counts from 1 without a gap; its leaf in the log's tree is `seq - 1`."""

    seq: int
    at: datetime
    actor: str
    token_id: str = ""
    action: str
    object: str
    namespace: str = ""
    detail: dict[str, Any] = {}
    request_id: str = ""

    def entry(self) -> bytes:
        """Return the bytes that the log hashes: canonical JSON of all fields, so a new field would change the format.

        `Invalid` for an event that no server could have written.
        """
        return canonical_json(self.model_dump() | {"at": moment(self.at)})


def moment(at: datetime) -> str:
    """Format a time as entries do: UTC to the microsecond."""
    return to_utc(at).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class EventPage(ItemPage[EventView]):
    """A page of events, oldest first."""

    last: int = 0


class EventProof(Response):
    """An event's entry as text, and the proof that the log holds it (C2SP tlog-proof)."""

    seq: int
    entry: str
    proof: str

    def event(self) -> Any:
        """The entry as a JSON value. `ValueError` if it is not JSON, or nested too deep."""
        try:
            return json.loads(self.entry)
        except RecursionError as e:
            raise ValueError("nested too deep") from e


class KeyReplacement(Response):
    """A key that an operator made because the former one was lost. Only the log itself attests it."""

    key: str
    reason: str
    at: datetime
    seq: int


class LogKeys(Response):
    """The name of the log and its public keys (C2SP verifier keys); the first one signs."""

    origin: str
    keys: list[str]
    successions: list[str] = []
    replacements: list[KeyReplacement] = []


class Consistency(Response):
    """The proof that the log of size `old` is a prefix of the log of size `new`: hashes in hex."""

    old: int
    new: int
    hashes: list[str]
