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
    """Number of the event in the audit log, from 1 without a gap."""
    at: datetime
    """When it happened."""
    actor: str
    """Identity whose token did it; `registry` for the server's own work."""
    token_id: str = ""
    """Token that was used. Empty for the server itself."""
    action: str
    """Type of event, `noun.verb`, such as `alias.move`."""
    object: str
    """What it is about, such as `acme/support:prod`."""
    namespace: str = ""
    """Namespace that it belongs to. Empty for events of the whole registry."""
    detail: dict[str, Any] = {}
    """Fields of this type of event."""
    request_id: str = ""
    """The request that caused it, as in the header `X-Request-Id` and in the server's log."""

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

    items: list[EventView]
    """Events that the caller may see, oldest first."""

    last: int = 0
    """Number of the last event that was read, whether or not the caller may see it. Send it as `after`."""


class EventProof(Response):
    """An event's entry as text, and the proof that the log holds it (C2SP tlog-proof)."""

    seq: int
    """Number of the event in the audit log, from 1 without a gap."""
    entry: str
    """The entry as the log hashes it: canonical JSON."""
    proof: str
    """Proof that the log holds the entry (C2SP tlog-proof)."""

    def event(self) -> Any:
        """The entry as a JSON value. `ValueError` if it is not JSON, or nested too deep."""
        try:
            return json.loads(self.entry)
        except RecursionError as e:
            raise ValueError("nested too deep") from e


class KeyReplacement(Response):
    """A key that an operator made because the former one was lost. Only the log itself attests it."""

    key: str
    """The new public key (C2SP verifier key)."""
    reason: str
    """Why, for everyone who reads the history. Control characters are refused."""
    at: datetime
    """When it was made."""
    seq: int
    """Number of the event that records the replacement."""


class LogKeys(Response):
    """The name of the log and its public keys (C2SP verifier keys); the first one signs."""

    origin: str
    """Name of the log, as its checkpoints state it."""
    keys: list[str]
    """Public keys (C2SP verifier keys); the first one signs."""
    successions: list[str] = []
    """Notes in which an older key names the one that follows it."""
    replacements: list[KeyReplacement] = []
    """Keys that were made after a loss. Only the log itself attests them."""


class Consistency(Response):
    """The proof that the log of size `old` is a prefix of the log of size `new`: hashes in hex."""

    old: int
    """Size of the older log."""
    new: int
    """Size of the newer log."""
    hashes: list[str]
    """Hashes of the proof (RFC 6962), in hexadecimal."""
