"""The audit log of a server and as an exported folder: `Audit` has the routes, also of attestations and webhooks.

    checkpoint          the signed note        keys            the verifier keys, one per line
    tile/…              C2SP's paths           events.jsonl    the events as the database has them, one per line

Only `registry.tlog` verifies, with keys that the caller trusts; not with those in an exported folder.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Unpack

from pydantic import ValidationError

from registry.api import audit
from registry.api.audit import LogKeys
from registry.api.audit.attestations import AttestationList, AttestationView, SignRequest
from registry.api.audit.webhooks import (
    DeliveryList,
    DeliveryView,
    WebhookCreate,
    WebhookCreated,
    WebhookPage,
    WebhookView,
)
from registry.api.operations import attestations, webhooks
from registry.api.operations import audit as operations
from registry.attestations import models
from registry.attestations.keys import PublicKey
from registry.client.core import AnyRef, Change, Versions, parsed_ref
from registry.client.response_checks import check_signature
from registry.client.transport import invalid_response
from registry.errors import Corrupt, Invalid, NotFound
from registry.tlog import tiles
from registry.tlog.notes import Checkpoint, Verifier

PAGE = 200


class Audit(Versions):
    """The routes of the log, of attestations and of webhooks, over the connection of `registry`."""

    def __init__(self, registry: Versions) -> None:
        super().__init__(registry.url, connection=registry.connection)

    def proof(self, seq: int) -> audit.EventProof:
        """The proof that an event is in the log. `NotFound` until the log has numbered it."""
        return self.call(operations.PROVE_EVENT, seq=seq)

    def page(self, after: int = 0, **search: Any) -> audit.EventPage:
        """One page. `search`: wait (seconds), limit, action (a list), object, namespace, by, first_at, last_at."""
        page = self.call(operations.LIST_EVENTS, after=after, **search)
        numbers = [after, *(event.seq for event in page.items)]
        if any(number <= before for before, number in pairwise(numbers)) or page.last < numbers[-1]:
            raise invalid_response(f"the events after {after} are not in their order")
        return page

    def events(self, after: int = 0, **search: Any) -> Iterator[audit.EventView]:
        """All events from the one that follows `after`, that are there now."""
        while True:
            page = self.page(after, limit=PAGE, **search)
            yield from page.items
            if not page.next_cursor:
                return
            if page.last <= after:
                raise invalid_response(f"a page of events after {after} continues after {page.last}")
            after = page.last

    def tile(self, level: int, index: int, width: int, *, stored: bool = False) -> bytes:
        """The hashes of one tile, `width` × 32 bytes: as the database has them, or as the store has them (`stored`)."""
        path = tiles.tile_path(level, index, width).removeprefix("tile/")
        return self.call(operations.READ_LOG_TILE, path=path, stored=stored or None)

    def entries(self, index: int, width: int) -> bytes:
        """The entries of one tile as a C2SP entry bundle."""
        path = tiles.tile_path("entries", index, width).removeprefix("tile/entries/")
        return self.call(operations.READ_LOG_ENTRIES, path=path)

    def attestations(self, ref: AnyRef) -> AttestationList:
        """The attestations of a version."""
        return self.call(attestations.LIST_ATTESTATIONS, about=parsed_ref(ref))

    def sign(self, ref: AnyRef, request: SignRequest) -> AttestationView:
        """Attach a signature to a version."""
        view = self.call(attestations.SIGN_VERSION, request, about=parsed_ref(ref))
        key = PublicKey.parse(request.public_key.encode()) if request.public_key else None
        signer = key.identity if key else models.name_in_certificate(request.bundle)
        return check_signature(request.bundle, key.pem if key else "", signer, view)

    def create_webhook(self, request: WebhookCreate) -> WebhookCreated:
        """Create a webhook. Only this response has its secret."""
        return self.call(webhooks.CREATE_WEBHOOK, request)

    def webhooks(self) -> WebhookPage:
        """All webhooks, oldest first, of as many pages as there are."""
        return self.call_all(webhooks.LIST_WEBHOOKS)

    def delete_webhook(self, webhook_id: str, **change: Unpack[Change]) -> WebhookView:
        """Delete a webhook and its deliveries."""
        return self.call(webhooks.DELETE_WEBHOOK, webhook_id=webhook_id, **change)

    def deliveries(self, webhook_id: str, *, state: str = "") -> DeliveryList:
        """Deliveries of a webhook, newest first, in one state or in all."""
        return self.call(webhooks.LIST_DELIVERIES, webhook_id=webhook_id, state=state)

    def retry_delivery(self, webhook_id: str, delivery_id: int) -> DeliveryView:
        """Send a delivery again."""
        return self.call(webhooks.RETRY_DELIVERY, webhook_id=webhook_id, delivery_id=delivery_id)


class ServerLog:
    """The log of a server as a source of a replay (registry.tlog.replay)."""

    def __init__(self, audit: Audit, note: str) -> None:
        self._audit, self._note = audit, note

    def checkpoint(self) -> str:
        """The checkpoint that the caller chose."""
        return self._note

    def tiles(self, level: int, index: int, width: int) -> Sequence[bytes]:
        """The database's and the store's."""
        tiles = []
        for stored in (False, True):
            try:
                tiles.append(self._audit.tile(level, index, width, stored=stored))
            except (Corrupt, NotFound):
                tiles.append(b"")
        return tiles

    def entries(self, index: int, width: int) -> bytes:
        """The entry bundle of a tile; empty if the server cannot give it."""
        try:
            return self._audit.entries(index, width)
        except (Corrupt, NotFound):
            return b""

    def rows(self) -> Iterator[bytes]:
        """The entry that each event of the database makes, from the first on."""
        for event in self._audit.events():
            yield event.entry()


def export_log(audit: Audit, folder: Path) -> Checkpoint:
    """Write the log as it is now into an empty or absent folder. `Invalid` if the folder is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise Invalid("FOLDER_INVALID", f"{folder} is not empty", next_step="name a folder that is not there yet")
    folder.mkdir(parents=True, exist_ok=True)
    keys, note = audit.log_keys(), audit.checkpoint()
    checkpoint = Checkpoint.of_text(note.rpartition("\n\n")[0] + "\n")
    if checkpoint is None:
        raise Invalid("REQUEST_INVALID", "the registry's checkpoint cannot be read")
    (folder / "keys").write_bytes("".join(f"{key}\n" for key in keys.keys).encode())
    for level, index, width in tiles.widths(checkpoint.size):
        _put(folder, tiles.tile_path(level, index, width), audit.tile(level, index, width, stored=True))
        if level == 0:
            _put(folder, tiles.tile_path("entries", index, width), audit.entries(index, width))
    with (folder / "events.jsonl").open("wb") as file:
        for event in audit.events():
            if event.seq > checkpoint.size:
                break
            file.write(event.model_dump_json().encode() + b"\n")
    (folder / "checkpoint").write_bytes(note.encode())
    return checkpoint


def _put(folder: Path, path: str, data: bytes) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


class FolderLog:
    """An exported log as a source of a replay (registry.tlog.replay)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def checkpoint(self) -> str:
        """`Invalid` (FOLDER_INVALID) for a folder without one."""
        try:
            return (self._folder / "checkpoint").read_text("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise Invalid("FOLDER_INVALID", f"{self._folder} holds no exported log: no 'checkpoint'") from e

    def keys(self) -> tuple[Verifier, ...]:
        """The keys that lie in the folder."""
        try:
            lines = (self._folder / "keys").read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise Invalid("FOLDER_INVALID", f"{self._folder} holds no exported log: no 'keys'") from e
        return tuple(Verifier.parse(line) for line in LogKeys(origin="", keys=lines).keys)

    def tiles(self, level: int, index: int, width: int) -> Sequence[bytes]:
        """The tile of the folder; empty if it is missing."""
        return [self._read(tiles.tile_path(level, index, width))]

    def entries(self, index: int, width: int) -> bytes:
        """The entry bundle of a tile; empty if it is missing."""
        return self._read(tiles.tile_path("entries", index, width))

    def rows(self) -> Iterator[bytes]:
        """A line that is no event is an entry that nothing agrees with."""
        path = self._folder / "events.jsonl"
        with path.open("rb") as file:
            for line in file:
                try:
                    yield audit.EventView.model_validate_json(line).entry()
                except (ValidationError, Invalid):
                    yield line

    def _read(self, path: str) -> bytes:
        try:
            return (self._folder / path).read_bytes()
        except OSError:
            return b""
