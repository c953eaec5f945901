"""What people come for, from the first page on, in as many steps as they should take. A step is a click or a search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import Page, expect

from tests.web.browser import chromium
from tests.web.site import Site


@dataclass
class Person:
    """Someone who has signed in and looks at the first page."""

    page: Page
    steps: int = 0

    def search(self, text: str) -> None:
        self.steps += 1
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")
        self.page.wait_for_load_state()

    def click(self, selector: str) -> None:
        self.steps += 1
        self.page.locator(selector).first.click()
        self.page.wait_for_load_state()


@contextmanager
def visitor(site: Site) -> Iterator[Person]:
    with chromium() as context:
        page = context.new_page()
        page.goto(site.sign_in_link())
        page.goto(site.url)
        yield Person(page)


def test_an_engineer_sees_in_two_steps_whether_an_adapter_is_fine_and_how_to_load_it(site: Site) -> None:
    with visitor(site) as engineer:
        engineer.search("support")
        engineer.click("h2 a[href='/adapters/acme/support']")
        assert engineer.steps <= 2
        page = engineer.page
        for selector, text in ((".cards .conclusion", "1 warning: smoke"), (".line", "adapter pull acme/support:prod")):
            shown = page.locator(selector).first
            expect(shown).to_contain_text(text)
            box = shown.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] < 400, selector
        expect(page.locator("#card")).to_have_text("Card of version 2")


def test_a_release_manager_promotes_what_may_be_in_three_steps_and_compares_in_one_more(site: Site) -> None:
    registry = site.harness.admin
    before = registry.alias("acme/support", "canary").number
    newest = registry.version("acme/support").number
    with visitor(site) as manager:
        manager.click("nav a[href='/namespaces/acme']")
        manager.click("input[name='support:canary']")
        manager.click("button[value=promote]")
        assert manager.steps <= 3
        expect(manager.page.locator("[role=status]")).to_contain_text("approved or promoted")
        assert registry.alias("acme/support", "canary").number == newest
        manager.click("a[href^='/compare?first=acme%2Fsupport%402']")
        expect(manager.page.locator("h1")).to_contain_text("Compar")
    registry.promote(
        "acme/support", "canary", str(before), generation=registry.alias("acme/support", "canary").generation
    )


def test_a_person_on_call_sees_what_serves_and_goes_back_with_one_confirmed_click(site: Site) -> None:
    registry = site.harness.admin
    with visitor(site) as person:
        person.page.goto(f"{site.url}/adapters/acme/support/aliases/canary")
        number = registry.alias("acme/support", "canary").number
        expect(person.page.locator("#now ~ p").first).to_contain_text(f"version {number}")
        back = person.page.locator("form[action$='/rollback'] button")
        if back.count():
            target = back.inner_text().rsplit(" ", 1)[1]
            person.page.fill("#why", "it answers in the wrong language")
            person.click("form[action$='/rollback'] button")
            assert (person.steps, registry.alias("acme/support", "canary").number) == (1, int(target))
            registry.promote(
                "acme/support", "canary", str(number), generation=registry.alias("acme/support", "canary").generation
            )
