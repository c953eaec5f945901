"""`adapter login` at a terminal, a browser that signs in at an identity provider, and a real server between them."""

from __future__ import annotations

import html
import os
import pty
import re
import subprocess
from pathlib import Path
from urllib.parse import quote

import click
import httpx
import pytest

from registry.token_secret import command_code
from tests.access.identity import LoginServer
from tests.cli.runner import COMMAND, CommandRunner, served

pytestmark = pytest.mark.security


class Terminal:
    """`adapter login` with a terminal, where a browser would open that does nothing."""

    def __init__(self, url: str) -> None:
        self._ours, theirs = pty.openpty()
        env = os.environ | {"BROWSER": "true", "COLUMNS": "400", "NO_COLOR": "1"}
        self.process = subprocess.Popen([*COMMAND, "login", url], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        self.text = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        while (found := re.search(pattern, self.text)) is None:
            self.text += click.unstyle(os.read(self._ours, 4096).decode())
        self.text = self.text[found.end() :]
        return found

    def press_enter(self) -> None:
        os.write(self._ours, b"\r")


def test_a_person_signs_a_command_in_and_the_secret_never_leaves_it(cli: CommandRunner, tmp_path: Path) -> None:
    (folder := tmp_path / "provider").mkdir()
    provider = LoginServer(folder)
    with provider.running(), served(tmp_path / "server", REGISTRY_ISSUERS=provider.settings) as (_, printed):
        terminal = Terminal(printed["url"])
        code = terminal.read_until(r"the code (\w{4}-\w{4}):")[1]
        address = terminal.read_until(r"(http://\S+/settings/tokens/own\?\S+)\s")[1]
        sha256 = httpx.URL(address).params["sha256"]
        assert command_code(sha256) == code
        terminal.read_until("Press Enter")
        terminal.press_enter()
        terminal.read_until("has not signed this command in yet")
        with httpx.Client(follow_redirects=True) as browser:
            path = httpx.URL(address).raw_path.decode()
            assert "/sign-in?next=" in browser.get(address, headers={"Accept": "text/html"}).text
            page = browser.get(f"{printed['url']}/sign-in/with/acme-login?next={quote(path, safe='')}&again=yes").text
            assert f"<b>{code}</b>" in page
            hidden = dict(
                re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', page.partition("<main")[2])
            )
            fields = {name: html.unescape(value) for name, value in hidden.items()} | {"name": "laptop", "lifetime": ""}
            done = browser.post(printed["url"] + "/settings/tokens/own", data=fields)
            assert "Return to the terminal" in done.text
            assert "lra_" not in done.text
        terminal.press_enter()
        terminal.read_until("You are alice@acme.example at")
        assert terminal.process.wait(30) == 0
        assert cli("whoami", "--json").json["subject"] == "alice@acme.example"
        forged = provider.sign(aud="https://elsewhere.example.org")
        httpx.post(printed["url"] + "/api/v1/tokens/exchange", json={"assertion": forged})
        said = cli("doctor", ADAPTER_REGISTRY=printed["url"], ADAPTER_TOKEN=printed["token"]).stdout
        assert "1 refused since yesterday" in said
        assert "InvalidAudienceError" in said
