"""In Chromium: how many steps people need for what they come for. A step is a click, or a form filled in and sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from playwright.sync_api import Page, expect

from registry.client.audit import Audit
from registry.events import DeliveryState
from registry.server.database import db
from registry.server.database.models.owner_rules import DeliveryRow
from tests.web.browser import chromium
from tests.web.site import Site


class Steps:
    """A page, and the clicks on it."""

    def __init__(self, page: Page) -> None:
        self.page, self.count = page, 0

    def click(self, role: str, name: str) -> None:
        self.count += 1
        self.page.get_by_role(role, name=name, exact=True).first.click()  # type: ignore[arg-type]


@contextmanager
def visit(site: Site, path: str) -> Iterator[Steps]:
    """A page of an administrator, without scripts."""
    with chromium(scripts=False) as context:
        page = context.new_page()
        page.goto(site.sign_in_link())
        page.goto(site.url + path)
        yield Steps(page)


def test_an_administrator_learns_in_two_steps_why_a_webhook_is_silent(site: Site) -> None:
    webhook, now = Audit(site.harness.admin).webhooks().items[0], db.now()
    with site.harness.session() as session:
        session.add(DeliveryRow(
            webhook_id=webhook.id, position=1, state=DeliveryState.DEAD, attempt=8, error="the address is unknown",
            next_at=now, created_at=now - timedelta(hours=2), ended_at=now,
        ))  # fmt: skip
        session.commit()
    with visit(site, "/") as steps:
        steps.click("link", "Status")
        expect(steps.page.locator("#main li").first).to_contain_text("✕")
        steps.click("link", "Look at webhooks")
        expect(steps.page.locator("#main")).to_contain_text("the address is unknown")
        assert steps.count <= 2
