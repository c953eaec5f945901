"""Every method of the client, called again with changed responses: wrong ones, and those of a newer server."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import is_dataclass
from functools import partial, reduce
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from registry.api.operations.operation import PRESENT, Operation
from registry.api.operations.table import OPERATIONS
from registry.client.transport.responses import read_tolerantly
from registry.errors import Corrupt, RegistryError
from registry.names import AdapterName, Ref
from registry.versions.manifest import Manifest
from tests import every_call
from tests.access.identity import Provider
from tests.access.tenants import send
from tests.every_call import Call, Exchange
from tests.harness import Harness

pytestmark = pytest.mark.security
Location = tuple[str | int, ...]
NOT_IDENTITIES = frozenset({"spec", "manifest", "facts", "payload", "detail", "settings"})
"""Fields whose contents say what something is, not which one."""
NUMBERS = frozenset({"number", "seq", "id", "old", "new"})
SHOWN = "people read it, nothing acts on it"
FIRST = "a repeated request changes nothing, so the first text stays"
BY_ALIAS = "an alias may name the base"
UNCOMPARED = {
    "Aliases.aliases items.*.alias": "aliases of other requests in this test",
    "Aliases.promote reason": FIRST,
    "Audit.retry_delivery seq": "that of the event",
    "Registry.all_nodes convergence.*.base": BY_ALIAS,
    "Registry.all_nodes items.*.base": BY_ALIAS,
    "Registry.approve comment": FIRST,
    "Registry.add_base source": SHOWN,
    "Registry.base source": SHOWN,
    "Registry.check items.*.base": BY_ALIAS,
    "Registry.check items.*.profile": "it is written in another order",
    "Registry.check_gate gate.set_on": "the namespace may have set it",
    "Registry.check_gate step.subject": "of a hint, which is printed and never run",
    "Registry.check_gate step.alias": "of a hint, which is printed and never run",
    "Groups.move_aliases items.*.problem.parameters.adapter": "of an error's text",
    "Groups.change_metadata items.*.problem.parameters.adapter": "of an error's text",
    "Groups.approve_versions items.*.problem.parameters.adapter": "of an error's text",
    "Versions.plan_pulls items.*.problem.parameters.adapter": "of an error's text",
    "Registry.delete_base name": BY_ALIAS,
    "Registry.delete_version delete_reason": SHOWN,
    "Registry.desired_state source": SHOWN,
    "Registry.engine_settings items.*.profile": "it is written in another order",
    **{
        f"Registry.{change} verdicts.*.subject": "who can change it can change the outcome"
        for change in ("delete_version", "quarantine", "undelete_version", "unquarantine", "yank")
    },
    "Versions.describe verdicts.*.subject": "who can change it can change the outcome",
    "Registry.fail error": SHOWN,
    "Registry.finish base": "the id names the job",
    "Registry.finish subject_digest": "the id names the job",
    "Registry.gate set_on": "the namespace may have set it",
    "Registry.gates items.*.set_on": "the namespace may have set it",
    "Registry.lineage nodes.*.name": "only the first node was requested",
    "Registry.quarantine quarantine_reason": FIRST,
    "Registry.retention set_on": "the namespace may have set it",
    "Registry.revoke_role before.*.role": SHOWN,
    "Registry.set_base_aliases source": SHOWN,
    "Registry.set_gate set_on": "the namespace may have set it",
    "Registry.verdicts items.*.profile": "it is written in another order",
    "Registry.yank yank_reason": FIRST,
    "Versions.adapters items.*.base": BY_ALIAS,
    "Versions.plan_pulls items.*.result.resolved.selector": "name and digest say which version it is",
    "Versions.resolve selector": "name and digest say which version it is",
    "Versions.version aliases.*": "an alias may have moved meanwhile",
    "Versions.version verdicts.*.subject": "who can change it can change the outcome",
    "Versions.versions items.*.aliases.*": "an alias of this test has the name of an adapter",
}
"""Method and field that repeats a value of the request, and may differ."""
NOT_IN_RESPONSES = {"CampaignItem", "KeyReplacement", "ServedOn", "UploadPart"}
"""Types of responses that the recorded ones do not have."""
FREE_FORM = frozenset({"payload", "result"})
"""Fields of requests with any keys. Those of others have values of one type, which the unknown field has not."""
OTHER_VALUES: list[tuple[str, dict[str, Any]]] = [
    ("Audit.sign", {"kind": "unverified"}),
    ("Audit.sign", {"identity": "key:" + "0" * 64}),
    ("Audit.sign", {"digest": "sha256:" + "0" * 64}),
    ("Audit.sign", {"size_bytes": 1}),
    ("Audit.sign", {"public_key": ""}),
    ("Audit.sign", {"bundle": "{}"}),
    ("Registry.delete_version", {"deleted_at": None}),
    ("Registry.report_node", {"unknown": ["other"]}),
    ("Registry.grant_role", {"roles": []}),
    ("Registry.revoke_role", {"roles": [{"role": "pusher", "aliases": []}]}),
    ("Registry.set_gate", {"gate": {"approvals": 0}}),
    ("Registry.lineage", {"root": "sha256:" + "0" * 64}),
]
"""What the client compares beyond the table of operations."""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Call]]:
    folder: Path = tmp_path_factory.mktemp("calls")
    provider = Provider(folder)
    with Harness(f"sqlite:///{folder}/registry.db", issuers=provider.settings, engines="vllm==0.33.0") as harness:
        yield every_call.record(harness, provider)


def test_every_method_of_the_client_is_called(calls: list[Call]) -> None:
    assert every_call.methods() - {call.name for call in calls} == set()


# ------------------------------------------------------------ wrong responses
def requested_values(value: Any) -> set[str | int]:
    """What the arguments of a call name: texts of two characters and more, and numbers."""
    if value is None or isinstance(value, bool | float | Operation):
        return set()
    if isinstance(value, int):
        return {value}
    if isinstance(value, AdapterName | Ref | str):
        text, ref = str(value), _ref_of(str(value))
        values: set[str | int] = {text} if len(text) > 1 else set()
        values |= {int(text)} if text.isascii() and text.isdigit() else set()
        return values | ({str(ref.name), ref.selector} if ref is not None else set())
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return set().union(*map(requested_values, items))
    return requested_values(value.model_dump(mode="json"))


def _ref_of(text: str) -> Ref | None:
    try:
        return Ref.parse(text)
    except RegistryError:
        return None


def leaves(
    document: Any, location: Location = (), *, hidden: Set[str] = NOT_IDENTITIES
) -> Iterator[tuple[Location, Any]]:
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            if key not in hidden:
                yield from leaves(value, (*location, key), hidden=hidden)
    else:
        yield location, document


def altered(call: Call, exchange: Exchange, location: Location, value: Any) -> list[Any]:
    """The responses of a call, one of them with another value at this place."""
    document = copy.deepcopy(exchange.received)
    holder = reduce(lambda inner, key: inner[key], location[:-1], document)
    holder[location[-1]] = value
    return [document if other is exchange else None for other in call.exchanges]


def field_of(location: Location) -> str:
    return ".".join("*" if isinstance(key, int) else key for key in location)


def repeated_fields(call: Call) -> Iterator[tuple[str, list[Any]]]:
    """Each field of a response that has a value of the request, and responses in which it has another one."""
    values = requested_values([*call.arguments, *call.options.values()])
    fields = set()
    for exchange in call.exchanges:
        for location, value in leaves(exchange.received) if exchange.shape is not None else ():
            field = field_of(location)
            is_number = isinstance(value, int) and location[-1] in NUMBERS
            if field in fields or not (is_number or isinstance(value, str)) or value not in values:
                continue
            fields.add(field)
            yield field, altered(call, exchange, location, other_than(value))


def other_than(value: Any) -> Any:
    """Another value that a field with this one may have."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, list):
        return []
    if isinstance(value, dict):
        return {key: other_than(inner) for key, inner in value.items()}
    return value[:-1] + ("1" if value[-1] != "1" else "2") if value else "2026-01-01T00:00:00Z"


def places(document: Any, path: Sequence[str], location: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Where a document has a field of the table of operations: that of a list is in each of its items."""
    if isinstance(document, list):
        for position, item in enumerate(document):
            yield from places(item, path, (*location, position))
    elif path and isinstance(document, dict) and path[0] in document:
        inner = document[path[0]]
        yield from places(inner, path[1:], (*location, path[0])) if path[1:] else [((*location, path[0]), inner)]


def test_what_the_table_says_that_a_response_repeats_is_compared(calls: list[Call]) -> None:
    """In one call at least: a request need not name it."""
    compared = set()
    for call in calls:
        for exchange in call.exchanges:
            prefix = "items.result." if exchange.row.is_bulk else ""
            for field, named in exchange.row.echo.items() if exchange.shape is not None else ():
                for location, value in places(exchange.received, f"{prefix}{field}".split(".")):
                    try:
                        call.repeat(altered(call, exchange, location, None if named == PRESENT else other_than(value)))
                    except Corrupt:
                        compared.add((exchange.row.id, field))
    assert {(row.id, field) for row in OPERATIONS.values() for field in row.echo} - compared == set()


def test_a_response_that_repeats_its_request_wrongly_is_refused(calls: list[Call]) -> None:
    """A new field is compared, or listed above."""
    accepted = set()
    for call in calls:
        for field, documents in repeated_fields(call):
            with contextlib.suppress(Corrupt):
                call.repeat(documents)
                accepted.add(f"{call.name} {field}")
    assert accepted == set(UNCOMPARED)


@pytest.mark.parametrize("value", [None, "../../x", -1, []])
def test_any_other_value_in_a_response_is_read_or_refused(calls: list[Call], value: object) -> None:
    """No field makes the client fail by an error of its own."""
    tried = set()
    for call in calls:
        for exchange in call.exchanges:
            for location, _ in leaves(exchange.received, hidden=frozenset()) if exchange.shape is not None else ():
                where = (call.name, exchange.row.id, field_of(location))
                if where not in tried:
                    tried.add(where)
                    with contextlib.suppress(RegistryError):
                        call.repeat(altered(call, exchange, location, value))


@pytest.mark.parametrize(("name", "change"), OTHER_VALUES)
def test_a_response_with_another_value_than_the_requested_one_is_refused(
    calls: list[Call], name: str, change: dict[str, Any]
) -> None:
    call = next(call for call in calls if call.name == name)
    with pytest.raises(Corrupt):
        call.repeat_changed(lambda exchange: exchange.received | change)


def test_events_that_do_not_ascend_are_refused(calls: list[Call]) -> None:
    """`adapter audit log --follow` would print them for ever."""
    call = next(call for call in calls if call.name == "Audit.page")
    events = call.exchanges[0].received["items"]
    assert len(events) > 1
    for change in ({"items": events[::-1]}, {"last": 0}):
        with pytest.raises(Corrupt, match="order"):
            call.repeat_changed(partial(_with, change))


def test_a_desired_state_serves_each_name_once(calls: list[Call]) -> None:
    call = next(call for call in calls if call.name == "Registry.desired_state")
    with pytest.raises(Corrupt, match="two versions"):
        call.repeat_changed(lambda exchange: exchange.received | {"adapters": 2 * exchange.received["adapters"]})


def test_a_response_about_engines_has_a_verdict(calls: list[Call]) -> None:
    """The plugin serves what no verdict refuses."""
    call = next(call for call in calls if call.name == "Registry.verdicts" and len(call.arguments) > 1)
    stored = next(call for call in calls if call.name == "Registry.verdicts" and len(call.arguments) == 1)
    for items in (list[Any](), stored.exchanges[0].received["items"]):
        with pytest.raises(Corrupt, match="no verdicts about the engines"):
            call.repeat_changed(partial(_with, {"items": items}))


def _with(change: dict[str, Any], exchange: Exchange) -> Any:
    return exchange.received | change


# ------------------------------------------------------------ responses of a newer server, requests of a newer client
def field_types(kind: Any) -> dict[str, Any]:
    """The types of the fields of a schema or a dataclass; empty for other types."""
    if fields := getattr(kind, "model_fields", None):
        return {name: field.annotation for name, field in fields.items()}
    return get_type_hints(kind) if is_dataclass(kind) else {}


def with_unknown_fields(kind: Any, value: Any, levels: set[Any]) -> Any:
    """The document with an unknown field in each object that has fields and no digest; their types go into `levels`."""
    arguments = inner_types(kind)
    if get_origin(kind) in (Annotated, Union, UnionType):
        return reduce(lambda inner, option: with_unknown_fields(option, inner, levels), arguments, value)
    if isinstance(value, list) and arguments:
        return [with_unknown_fields(arguments[0], item, levels) for item in value]
    if not isinstance(value, dict) or kind is Manifest:
        return value
    if fields := field_types(kind):
        levels.add(kind)
        inner_values = {name: with_unknown_fields(fields[name], inner, levels) for name, inner in value.items()}
        return inner_values | {"added_later": [{"more": 1}]}
    return {key: with_unknown_fields(arguments[1], item, levels) for key, item in value.items()} if arguments else value


def inner_types(kind: Any) -> tuple[Any, ...]:
    """The types that a list, a mapping or a union is of."""
    return get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)


def reachable_types(kind: Any, types: set[Any]) -> set[Any]:
    """The types with fields in a response of this type, except in hashed ones."""
    if kind is Manifest or kind in types:
        return types
    fields = field_types(kind)
    if fields:
        types.add(kind)
    for inner in fields.values() or inner_types(kind):
        reachable_types(inner, types)
    options = [option for option in get_args(kind) if field_types(option)]
    assert len(options) < 2 or get_origin(kind) not in (Union, UnionType), f"{kind}: the fields of which option?"
    return types


def test_a_response_with_unknown_fields_at_every_level_is_read(calls: list[Call]) -> None:
    levels, types = set[Any](), set[Any]()
    for call in calls:
        for exchange in call.exchanges:
            if exchange.shape is None:
                continue
            reachable_types(exchange.shape, types)
            data = json.dumps(with_unknown_fields(exchange.shape, exchange.received, levels)).encode()
            assert b"added_later" in data
            assert read_tolerantly(exchange.shape, data) == exchange.shape.model_validate_json(
                exchange.response.content
            )
        if call.name != "Registry.report":  # its bytes have a digest
            result = call.repeat_changed(lambda e: with_unknown_fields(e.shape, e.received, set()))
            assert repr(result) == repr(call.result), call.name
    assert {kind.__name__ for kind in types - levels} == NOT_IN_RESPONSES


def test_an_unknown_field_of_a_hashed_document_is_refused(calls: list[Call]) -> None:
    call = next(call for call in calls if call.name == "Versions.resolve")
    for name in ("manifest", "files"):
        document = copy.deepcopy(call.exchanges[0].received)
        holder = document["manifest"] if name == "manifest" else document["manifest"]["files"][0]
        holder["added_later"] = ""
        with pytest.raises(Corrupt, match="added_later: is not a field here"):
            call.repeat([document])


def test_a_request_with_an_unknown_field_at_any_level_is_refused(calls: list[Call]) -> None:
    """Else a new condition of a gate would be lost at a server that does not know it."""
    tried = set()
    for call in calls:
        for exchange in call.exchanges:
            for where, body in with_one_unknown_field(exchange.sent):
                request = exchange.request
                if (request.method, request.url.path, where) in tried:
                    continue
                tried.add((request.method, request.url.path, where))
                response = send(
                    call.transport.harness, request.method, str(request.url), call.transport.harness.secret,
                    headers={"If-Match": request.headers.get("If-Match", '"0"')}, json=body,
                )  # fmt: skip
                refusal = (response.status_code, response.json()["code"])
                assert refusal == (400, "REQUEST_INVALID"), (call.name, where, response.text)


def with_one_unknown_field(document: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The document with an unknown field in one of its objects that are not free-form, for each."""
    if isinstance(document, dict):
        if where.rpartition(".")[2] not in FREE_FORM:
            yield where, document | {"added_later": {"more": 1}}
        for key, value in document.items():
            for inner, changed in with_one_unknown_field(value, f"{where}.{key}"):
                yield inner, document | {key: changed}
    elif isinstance(document, list) and document:
        for inner, changed in with_one_unknown_field(document[0], where):
            yield inner, [changed, *document[1:]]
