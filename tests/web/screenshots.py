"""Images of every page at three widths, light and dark, to look at.

python -m tests.web.screenshots FOLDER [PART OF A NAME]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import get_args

from registry.client.audit import Audit
from tests.harness import Harness
from tests.web.browser import Scheme, chromium
from tests.web.site import ENGINES, LONG, Site, fill, report_nodes, serve

WIDTHS = (390, 1280, 1920)
PAGES = {
    "search": "/search",
    "search-filtered": "/search?text=support&check=compat&outcome=pass",
    "search-empty": "/search?text=nothing-like-it",
    "search-invalid": "/search?base=a+b",
    "adapter": "/adapters/acme/support",
    "version": "/adapters/acme/support/versions/2",
    "version-golden": "/adapters/acme/support/versions/3",
    "version-image": "/adapters/acme/sketch/versions/1",
    "adapter-image": "/adapters/acme/sketch",
    "version-failed": "/adapters/acme/support/versions/4",
    "compare": "/compare?first=acme/support@2&second=acme/support@3",
    "compare-answers": "/compare?first=acme/support@1&second=acme/support@3",
    "compare-long": f"/compare?first=globex/{LONG[:64]}@1&second=globex/{LONG[:64]}@1",
    "compare-form": "/compare?first=acme/support@2&second=acme/nothing",
    "lineage": "/adapters/acme/support/versions/3/lineage",
    "bases": "/bases",
    "base": "/bases/tiny-llama",
    "namespace": "/namespaces/acme",
    "alias": "/adapters/acme/support/aliases/prod?at=2030-01-01T00:00",
    "alias-closed": "/adapters/acme/support/aliases/prod?version=4",
    "fleet": "/fleet",
    "node": "/fleet/gpu-2",
    "jobs": "/jobs",
    "audit": "/audit",
    "proof": "/audit/7",
    "audit-filtered": "/audit?object=acme/support:prod",
    "settings": "/settings",
    "settings-namespace": "/settings/namespaces/acme",
    "settings-adapter": "/settings/adapters/acme/support",
    "tokens": "/settings/tokens",
    "own_token": "/settings/tokens/own",
    "webhooks": "/settings/webhooks",
    "status": "/status",
    "adapter-long": f"/adapters/globex/{LONG[:64]}",
    "error": "/adapters/acme/nothing",
}
ANONYMOUS = {"sign-in": "/sign-in", "anonymous": "/", "anonymous-error": "/adapters/acme/support"}


def take(site: Site, folder: Path, part: str) -> None:
    """Write the images of all pages whose name holds `part`."""
    for width in WIDTHS:
        for scheme in get_args(Scheme):
            report_nodes(site.harness)  # which are silent after a while
            with chromium(width=width, scheme=scheme) as context:
                page = context.new_page()
                for name, url in addresses(site).items():
                    page.goto(url)
                    if name and part in name:
                        page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)


def addresses(site: Site) -> dict[str, str]:
    """Name → URL of every page, in the order of the visit. The one without a name signs in as administrator."""
    urls = {name: site.url + path for name, path in ANONYMOUS.items()}
    urls[""] = site.sign_in_link()
    urls |= {name: site.url + path for name, path in PAGES.items()}
    registry = site.harness.admin
    campaign = next(event.object for event in Audit(registry).events(action=["campaign.start"]))
    urls["campaign"] = f"{site.url}/campaigns/{campaign}"
    urls["job"] = f"{site.url}/jobs/{registry.jobs().items[0].id}"
    urls["webhook"] = f"{site.url}/settings/webhooks/{Audit(registry).webhooks().items[0].id}"
    return urls


def main() -> None:
    """Fill a registry, and take the images."""
    folder, part = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data, Harness(f"sqlite:///{data}/registry.db", engines=ENGINES) as harness:
        fill(harness)
        with serve(harness) as site:
            take(site, folder, part)


if __name__ == "__main__":
    main()
