"""`EventType`: every type of event in the audit log, the kind of object it is about, and its message.

A type is `noun.verb`. The log stores it, so a released type is never renamed or reused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from registry.errors import printable


class ObjectKind(Enum):
    """What an event's `object` names, with an example."""

    ADAPTER = "adapter, `acme/support`"
    ALIAS = "alias, `acme/support:prod`"
    BASE = "base model, `smollm2`"
    BLOB = "blob, `sha256:…`"
    CAMPAIGN = "campaign id"
    EVERYTHING = "the whole registry"
    GATE = "gate of an alias, in an adapter or a namespace, `acme:prod`"
    JOB = "job id"
    NAME = "name of an adapter or namespace"
    NAMESPACE = "namespace, `acme`"
    REQUEST = "method and path, `GET /api/v1/…`"
    TOKEN = "token id"  # noqa: S105 - no secret
    VERSION = "version, `acme/support@3`"
    WEBHOOK = "webhook id"

    @property
    def in_namespace(self) -> bool:
        """Whether such an object is a namespace, or begins with one and a slash."""
        return self in (ObjectKind.ADAPTER, ObjectKind.ALIAS, ObjectKind.NAMESPACE, ObjectKind.VERSION)


class DeliveryState(StrEnum):
    """The delivery of an event to a webhook. `dead`: the last attempt failed."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


class EventType(StrEnum):
    """One type of event. `about` is the kind of its object; `message` takes `object` and the fields of its detail."""

    about: ObjectKind
    message: str

    def __new__(cls, value: str, about: ObjectKind, message: str) -> EventType:
        member = str.__new__(cls, value)
        member._value_, member.about, member.message = value, about, message
        return member

    VERSION_PUSH = "version.push", ObjectKind.VERSION, "pushed {object}"
    VERSION_YANK = "version.yank", ObjectKind.VERSION, "yanked {object}"
    VERSION_UNYANK = "version.unyank", ObjectKind.VERSION, "unyanked {object}"
    VERSION_QUARANTINE = "version.quarantine", ObjectKind.VERSION, "quarantined {object}"
    VERSION_UNQUARANTINE = "version.unquarantine", ObjectKind.VERSION, "lifted the quarantine of {object}"
    VERSION_DELETE = "version.delete", ObjectKind.VERSION, "deleted {object}"
    VERSION_UNDELETE = "version.undelete", ObjectKind.VERSION, "restored {object} after its deletion"
    VERSION_PURGE = "version.purge", ObjectKind.VERSION, "erased the files of {object}"
    VERSION_SIGN = "version.sign", ObjectKind.VERSION, "signed {object}"
    VERSION_APPROVE = "version.approve", ObjectKind.VERSION, "approved {object} for {alias}"
    VERSION_SERVE = "version.serve", ObjectKind.VERSION, "started serving {object} on {node}"
    VERSION_UNSERVE = "version.unserve", ObjectKind.VERSION, "stopped serving {object} on {node}"
    VERSION_DESCRIBE = "version.describe", ObjectKind.VERSION, "changed the description, tags or links of {object}"
    VERSION_REINDEX = "version.reindex", ObjectKind.VERSION, "restored {object} from the bucket"
    VERDICT_ADD = "verdict.add", ObjectKind.VERSION, "checked {object}: {check} {outcome}"
    ALIAS_MOVE = "alias.move", ObjectKind.ALIAS, "pointed {object} at version {to}"
    ALIAS_DELETE = "alias.delete", ObjectKind.ALIAS, "deleted {object}, which pointed at version {from}"
    GATE_SET = "gate.set", ObjectKind.GATE, "set the gate of {object}"
    GATE_DELETE = "gate.delete", ObjectKind.GATE, "deleted the gate of {object}"
    RETENTION_SET = "retention.set", ObjectKind.NAME, "set the retention of {object}: {rule}"
    RETENTION_DELETE = "retention.delete", ObjectKind.NAME, "deleted the retention rule of {object}"
    ADAPTER_CREATE = "adapter.create", ObjectKind.ADAPTER, "created {object}"
    ADAPTER_RENAME = "adapter.rename", ObjectKind.ADAPTER, "renamed {object} to {to}"
    ADAPTER_RENAME_FROM = "adapter.rename_from", ObjectKind.ADAPTER, "named an adapter {object}; it was {from}"
    ADAPTER_DELETE = "adapter.delete", ObjectKind.ADAPTER, "deleted {object} with all its versions"
    ADAPTER_UNDELETE = "adapter.undelete", ObjectKind.ADAPTER, "restored {object}: {reason}"
    ADAPTER_RELEASE = "adapter.release", ObjectKind.ADAPTER, "released the name {object}"
    ADAPTER_DESCRIBE = "adapter.describe", ObjectKind.ADAPTER, "changed the description, tags or links of {object}"
    NAMESPACE_CREATE = "namespace.create", ObjectKind.NAMESPACE, "created the namespace {object}"
    NAMESPACE_LIMIT = "namespace.limit", ObjectKind.NAMESPACE, "set the limits of the namespace {object}"
    NAMESPACE_RULES = "namespace.rules", ObjectKind.NAMESPACE, "set rules of the namespace {object}: {text}"
    NAMESPACE_GRANT = "namespace.grant", ObjectKind.NAMESPACE, "granted {subject} the role {role} in {object}"
    NAMESPACE_REVOKE = "namespace.revoke", ObjectKind.NAMESPACE, "revoked the role {role} of {subject} in {object}"
    NAMESPACE_DELETE = "namespace.delete", ObjectKind.NAMESPACE, "deleted the namespace {object}"
    PUBLISHER_ADD = "publisher.add", ObjectKind.ADAPTER, "allowed identity tokens of {issuer} to push {object}"
    PUBLISHER_DELETE = ("publisher.delete", ObjectKind.ADAPTER, "barred identity tokens of {issuer} from {object}")
    BASE_ADD = "base.add", ObjectKind.BASE, "registered the base {object}"
    BASE_ALIASES = "base.aliases", ObjectKind.BASE, "set the other names of {object}"
    BASE_DELETE = "base.delete", ObjectKind.BASE, "deleted the base {object}"
    BASE_IDENTIFY = "base.identify", ObjectKind.BASE, "recorded the fingerprint of the weights of {object}"
    BASE_MODULES = "base.modules", ObjectKind.BASE, "recorded the modules of {object} as {library} builds them"
    BASE_THRESHOLDS = "base.thresholds", ObjectKind.BASE, "set the smoke-test thresholds of {object}"
    BASE_REINDEX = "base.reindex", ObjectKind.BASE, "restored the base {object} from the bucket"
    TOKEN_ISSUE = "token.issue", ObjectKind.TOKEN, "created the token {object} for {name}"
    TOKEN_EXCHANGE = "token.exchange", ObjectKind.TOKEN, "exchanged an identity token for the token {object}"
    TOKEN_ROTATE = "token.rotate", ObjectKind.TOKEN, "rotated the secret of the token {object} of {name}"
    TOKEN_REVOKE = "token.revoke", ObjectKind.TOKEN, "revoked the token {object} of {name}"
    JOB_ENQUEUE = "job.enqueue", ObjectKind.JOB, "queued a job ({kind}) for {subject}"
    JOB_FINISH = "job.finish", ObjectKind.JOB, "finished job {object}"
    JOB_REQUEUE = "job.requeue", ObjectKind.JOB, "queued job {object} again: {error}"
    JOB_FAIL = "job.fail", ObjectKind.JOB, "gave up job {object}: {error}"
    JOB_CANCEL = "job.cancel", ObjectKind.JOB, "cancelled job {object} of {subject}"
    JOB_SUPERSEDE = "job.supersede", ObjectKind.JOB, "superseded job {object} of {subject}: {cause}"
    CAMPAIGN_START = "campaign.start", ObjectKind.CAMPAIGN, "queued new smoke tests for {base}: {jobs} jobs"
    WEBHOOK_CREATE = "webhook.create", ObjectKind.WEBHOOK, "created a webhook to {to}"
    WEBHOOK_RETRY = "webhook.retry", ObjectKind.WEBHOOK, "sent an event to webhook {object} again"
    WEBHOOK_DELETE = "webhook.delete", ObjectKind.WEBHOOK, "deleted the webhook to {to}"
    GC_RUN = "gc.run", ObjectKind.EVERYTHING, "deleted unused blobs"
    ENGINES_RECHECK = "engines.recheck", ObjectKind.EVERYTHING, "applied newer engine rules: {verdicts} verdicts"
    BLOB_DAMAGE = "blob.damage", ObjectKind.BLOB, "found {object} damaged"
    BLOB_REPAIR = "blob.repair", ObjectKind.BLOB, "found {object} intact again"
    BYTES_READ = "bytes.read", ObjectKind.VERSION, "downloaded files of {object}"
    BYTES_COPY = "bytes.copy", ObjectKind.VERSION, "took files of {object} over into {to}"
    PAGE_READ = "page.read", ObjectKind.VERSION, "saw files of {object} on a page"
    ACCESS_DENIED = "access.denied", ObjectKind.REQUEST, "was denied {object}"
    ACCESS_UNKNOWN = "access.unknown", ObjectKind.REQUEST, "tried {object} without a valid token"
    ACCESS_NOT_FOUND = ("access.not_found", ObjectKind.REQUEST, "got 404 Not Found for {object}")
    AUDIT_KEY_ROTATE = "audit.key_rotate", ObjectKind.EVERYTHING, "signs the audit log with a new key"
    AUDIT_KEY_REPLACE = "audit.key_replace", ObjectKind.EVERYTHING, "replaced the lost key of the audit log"
    AUDIT_OVERFLOW = "audit.overflow", ObjectKind.EVERYTHING, "left out {count} kinds of denials and reads"


READ_TYPES: tuple[EventType, ...] = (
    EventType.BYTES_READ,
    EventType.BYTES_COPY,
    EventType.PAGE_READ,
    EventType.ACCESS_DENIED,
    EventType.ACCESS_UNKNOWN,
    EventType.ACCESS_NOT_FOUND,
    EventType.AUDIT_OVERFLOW,
)
"""Types that change nothing: who read bytes, and who tried to."""

ADMIN_TYPES: tuple[EventType, ...] = (
    EventType.NAMESPACE_GRANT,
    EventType.NAMESPACE_REVOKE,
    EventType.PUBLISHER_ADD,
    EventType.PUBLISHER_DELETE,
    EventType.WEBHOOK_CREATE,
    EventType.WEBHOOK_RETRY,
    EventType.WEBHOOK_DELETE,
    EventType.VERSION_APPROVE,
    EventType.VERSION_SERVE,
    EventType.VERSION_UNSERVE,
)
"""Types about people, trusted publishers, webhooks and nodes: only administrators and auditors of their namespace see
them."""

WEBHOOK_DEFAULT: tuple[EventType, ...] = (
    EventType.VERSION_PUSH,
    EventType.VERDICT_ADD,
    EventType.ALIAS_MOVE,
    EventType.ALIAS_DELETE,
    EventType.VERSION_YANK,
    EventType.VERSION_UNYANK,
    EventType.VERSION_QUARANTINE,
    EventType.VERSION_UNQUARANTINE,
    EventType.VERSION_DELETE,
    EventType.VERSION_UNDELETE,
)
"""The types that a webhook sends unless it names others."""


@dataclass(frozen=True, slots=True)
class EventText:
    """An event in words. `details` are the fields that the message does not contain."""

    message: str
    reason: str
    details: str


def describe(event_type: str, object: str, detail: Mapping[str, Any]) -> EventText:
    """An event in words, from its stored type, its object and its detail."""
    fields = {key: _short(value, key) for key, value in detail.items() if value not in _EMPTY}
    template = message_template(event_type)
    try:
        message = template.format(object=object, **fields)
    except (KeyError, IndexError):
        message = f"{event_type} {object}"
    if event_type == EventType.ALIAS_MOVE and "from" in fields:
        message += f", instead of {fields.pop('from')}"
    if "break_glass" in fields:
        message += ", through a closed gate"
    reason = fields.pop("reason", "")
    if fields.get("count") == "1":
        del fields["count"]
    rest = ", ".join(f"{key} {value}" for key, value in fields.items() if f"{{{key}}}" not in template)
    return EventText(message, reason, rest)


_EMPTY: tuple[Any, ...] = ("", None, [], {})
_OFF = (*_EMPTY, False)


def _short(value: object, key: str = "") -> str:
    if isinstance(value, dict):  # a gate: what is set, without what is off; a tag may be a name without a value
        fields = {name: _short(item) for name, item in sorted(value.items()) if key == "tags" or item not in _OFF}
        return " ".join(f"{name}={text}" if text else name for name, text in fields.items())
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:19] if text.startswith("sha256:") else text


def require_type(text: str) -> str:
    """Return the name of a type. `ValueError` for another text: a filter by it would find nothing, for ever."""
    if text not in set(EventType):
        nearest = difflib.get_close_matches(text, [str(member) for member in EventType], n=1)
        hint = f"the nearest is '{nearest[0]}'" if nearest else "docs/reference/events.md lists them"
        raise ValueError(f"'{printable(text, 60)}' is no type of event; {hint}")
    return text


def message_template(event_type: str) -> str:
    """The `message` of a stored type. A type of a newer release, which has no member here, reads as itself."""
    try:
        return EventType[event_type.upper().replace(".", "_")].message
    except KeyError:
        return f"{event_type} {{object}}"
