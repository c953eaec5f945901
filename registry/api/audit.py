"""REST schemas of the audit log: events, entries, keys, proofs; and of attestations."""

from datetime import datetime
from typing import Any

from pydantic import Field

from registry.api.models import ItemList, ItemPage, Request, Response
from registry.digest import Digest, canonical_json
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


class AttestationView(Response):
    """A signed statement about a version. It says who signed, not that the version is good."""

    kind: str
    identity: str
    digest: Digest
    size_bytes: int
    public_key: str = ""
    seq: int | None = None
    made_at: datetime
    made_by: str
    bundle: str = ""


class AttestationList(ItemList[AttestationView]):
    """The attestations of a version."""


class SignRequest(Request):
    """A signature for a version, and the public key unless the bundle brings a certificate."""

    bundle: str = Field(min_length=2, max_length=512 * 2**10)
    public_key: str = Field(default="", max_length=4096)
