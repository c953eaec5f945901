"""What is taken counts for the next request on every server, and asking costs the look-up no statement."""

from __future__ import annotations

import dataclasses

import httpx
import pytest

from registry.client.api import Registry
from registry.client.gates import Gates
from registry.client.inprocess import InProcess
from registry.client.namespaces import Namespaces
from registry.errors import NotFound, Refused, Unauthenticated
from registry.server import app, db
from tests.access.people import House, of_subject
from tests.world import URL, World


class Replica:
    """A second server on the same database and store, with a memory of its own."""

    def __init__(self, world: World) -> None:
        self.engine = db.engine(world.settings)
        self.transport = InProcess(app.create_app(world.settings, engine=self.engine, blobs=world.blobs))

    def client(self, secret: str) -> Registry:
        return Registry(URL, secret, self.transport)

    def close(self) -> None:
        self.transport.close()
        self.engine.dispose()


@pytest.fixture
def house(world: World) -> House:
    return House(world)


def test_a_revocation_a_rotation_and_a_lost_role_count_at_once_on_another_server_that_remembers(house: House) -> None:
    world, replica = house.world, Replica(house.world)
    try:
        token_id, revoked = world.issue("pull")
        other_id, rotated = world.issue("pull")
        subject = of_subject(world, "reader@acme")
        clients = [replica.client(secret) for secret in (revoked, rotated, subject)]
        for client in clients:
            for _ in range(2):
                assert client.resolve("acme/support").number == 1
        world.admin.revoke_token(token_id)
        Namespaces(world.admin).rotate(other_id)
        Namespaces(world.admin).revoke("acme", "reader@acme")
        for client, error in zip(clients, (Unauthenticated, Unauthenticated, NotFound), strict=True):
            with pytest.raises(error):
                client.resolve("acme/support")
            with pytest.raises(error):
                client.adapter("acme/support")
        Namespaces(world.admin).grant("acme", "reader@acme", "reader")
        assert clients[2].resolve("acme/support").number == 1
    finally:
        replica.close()


def test_a_quarantine_and_a_yank_count_at_once_on_another_server_that_remembers(house: House) -> None:
    """The answers that were kept there are not given again; by digest those who may promote go on reading."""
    world, replica = house.world, Replica(house.world)
    try:
        reader, admin = (replica.client(secret) for secret in (house.secret("reader"), world.secret))
        digest = world.push("acme/support").version.digest
        by_digest = f"acme/support@{digest}"
        for client in (reader, admin):
            for _ in range(2):
                assert client.resolve("acme/support").digest == client.resolve(by_digest).digest == digest
        gates = Gates(world.admin)
        gates.quarantine(by_digest, "an alarm")
        for client, ref in ((reader, "acme/support"), (reader, by_digest), (admin, "acme/support")):
            with pytest.raises(Refused) as refusal:
                client.resolve(ref)
            assert refusal.value.code == "QUARANTINED"
        assert admin.resolve(by_digest).digest == digest
        gates.release(by_digest, "a false alarm")
        assert reader.resolve("acme/support").digest == digest
        world.admin.yank(by_digest, "wrong data")
        with pytest.raises(Refused) as refusal:
            reader.resolve("acme/support")
        assert refusal.value.code == "YANKED"
        assert reader.resolve(by_digest).yanked
        world.admin.yank(by_digest, "it was the other run", undo=True)
        assert reader.resolve("acme/support").digest == digest
        assert not world.admin.version("acme/support").yank_reason
    finally:
        replica.close()


def test_the_look_up_of_a_subject_is_one_statement_at_most_and_signing_in_is_one(house: House) -> None:
    secret = house.secret("reader")
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(transport=house.world.transport, base_url=URL, headers=headers) as http:
        http.get("/api/v1/resolve/acme/support/main")
        with house.world.statements() as sent:
            assert http.get("/api/v1/resolve/acme/support/main").status_code == 200
        assert len(sent) <= 1
        with house.world.statements() as sent:
            assert http.get("/api/v1/whoami").status_code == 200
        assert len(sent) == 1


def test_an_expired_token_is_not_remembered_any_more(house: House) -> None:
    _, secret = house.world.issue("pull", seconds=3600)
    house.world.client(secret).whoami()
    memory = house.world.app.state.memory
    actor = memory.find(secret)
    assert actor is not None
    memory.keep(secret, dataclasses.replace(actor, expires_at=db.now()))
    assert memory.find(secret) is None
