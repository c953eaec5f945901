"""Operations of the audit log."""

from registry.api.audit import Consistency, EventPage, EventProof, LogKeys
from registry.api.operations.operation import ANY_TOKEN, AUDIT, NO_BODY, PULL, Tag

# fmt: off
audit = Tag("audit", "The audit log: events, checkpoints and proofs.")
LIST_EVENTS = audit.add("list_events", "GET /events", PULL, NO_BODY, EventPage)
STREAM_EVENTS = audit.add("stream_events", "GET /events/stream", PULL, NO_BODY, bytes)
READ_CHECKPOINT = audit.add("read_checkpoint", "GET /audit/checkpoint", ANY_TOKEN, NO_BODY, str)
LIST_LOG_KEYS = audit.add("list_log_keys", "GET /audit/keys", ANY_TOKEN, NO_BODY, LogKeys)
PROVE_CONSISTENCY = audit.add(
    "prove_consistency", "GET /audit/consistency", ANY_TOKEN, NO_BODY, Consistency, echo={"old": "old", "new": "new"},
)
READ_LOG_ENTRIES = audit.add("read_log_entries", "GET /audit/tile/entries/{path:path}", AUDIT, NO_BODY, bytes)
READ_LOG_TILE = audit.add("read_log_tile", "GET /audit/tile/{path:path}", ANY_TOKEN, NO_BODY, bytes)
PROVE_EVENT = audit.add("prove_event", "GET /audit/events/{seq}/proof", PULL, NO_BODY, EventProof, echo={"seq": "seq"})
