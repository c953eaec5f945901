#!/usr/bin/env python3
"""Push an adapter from a CI job by its identity token, and show the verdicts where people review.

    publish.py DIR NAME [--audience URL] [--timeout SECONDS] [--report FILE] [--no-comment] [OPTIONS OF adapter push]

Exchanges the identity token of the job for a token that may push NAME for minutes, pushes, waits for the verdicts and
writes them as a Markdown table: into the summary of the job and a comment on its pull request or merge request. Ends as
`adapter push --strict` does: with 6 if a verdict is fail. Needs Python and the command `adapter`, and nothing else.

Names, findings and errors come from those who push. Each is shown as code in which every character but ASCII letters,
digits and spaces is a character reference, so none of it is Markdown, HTML, a link or a mention.

Sources: "OpenID Connect reference", "Workflow commands" and "REST API endpoints for issue comments" of GitHub's
documentation; "ID token authentication" and "Notes API" of GitLab's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlencode, urlsplit

TIMEOUT_SECONDS = 30
RESPONSE_LIMIT_BYTES = 8 * 2**20
COMMENT_LIMIT = 60_000
PAGE = 100
MARGIN_SECONDS = 20
"""Waiting ends so long before the token does."""
SECRETS = ("GITLAB_NOTES_TOKEN", "ADAPTER_IDENTITY_TOKEN", "ADAPTER_TOKEN", "GITHUB_TOKEN",
           "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_RUNTIME_TOKEN", "CI_JOB_TOKEN", "CI_REPOSITORY_URL",
           "CI_REGISTRY_PASSWORD", "CI_DEPENDENCY_PROXY_PASSWORD", "CI_DEPLOY_PASSWORD")  # fmt: skip
"""Variables that `adapter` does not need, so it does not see them."""
MARKS = {"pass": "✅", "warn": "⚠️", "fail": "❌"}
FINDINGS_SHOWN = 5
TEXT_LIMIT = 300
ROWS_LIMIT = 40


# ------------------------------------------------------------------ CI services
class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: another host would get the token."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        """Return no request: the redirect is an error."""


def send(method: str, url: str, headers: Mapping[str, str], body: Mapping[str, str] | None = None) -> Any:
    """Send JSON and return the JSON of the response. `OSError`, `ValueError`; neither shows a header."""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"{parts.hostname} is not asked without https")
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, dict(headers), method=method)
    if data is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS) as response:
            text = response.read(RESPONSE_LIMIT_BYTES + 1)
    except urllib.error.HTTPError as e:
        raise OSError(f"{parts.hostname} responded with {e.code} to {method} {parts.path}") from None
    if len(text) > RESPONSE_LIMIT_BYTES:
        raise ValueError(f"the response of {parts.hostname} has more than {RESPONSE_LIMIT_BYTES} bytes")
    return json.loads(text)


class CiService:
    """Any CI service: the identity token is in a variable, and the log is all that people see."""

    NEXT_STEP: ClassVar[str] = "set ADAPTER_IDENTITY_TOKEN to the identity token of the job"

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def identity_token(self, _audience: str) -> str:
        """The identity token of this job; empty if it has none."""
        return self.environment.get("ADAPTER_IDENTITY_TOKEN", "").strip()

    def mask(self, secret: str) -> None:
        """Have the log hide a secret, where the service can."""

    @contextlib.contextmanager
    def commands_stopped(self) -> Iterator[None]:
        """Have the service read no commands in what is printed meanwhile."""
        yield

    def write_summary(self, text: str) -> None:
        """Show Markdown on the page of the job, where there is one."""

    def set_outputs(self, values: Mapping[str, str]) -> None:
        """Pass values to later steps of the job."""

    def comment(self, _name: str, _text: str) -> str:
        """Comment on what the job reviews, or change the comment about this adapter. Returns what happened, or ""."""
        return ""

    def _write_comment(
        self,
        comments: str,
        change: str,
        headers: Mapping[str, str],
        body: str,
        is_ours: Callable[[Any], bool],
        method: str,
    ) -> str:
        """Change our comment that begins with the same first line, else add one. `OSError`, `ValueError`."""
        marker = body.partition("\n")[0]
        items = send("GET", f"{comments}?{urlencode({'per_page': PAGE})}", headers)
        old = next((item["id"] for item in items if is_ours(item) and item["body"].startswith(marker)), None)
        if old is None:
            send("POST", comments, headers, {"body": body})
            return "commented"
        send(method, f"{change}/{int(old)}", headers, {"body": body})
        return "changed the comment"


class GitHub(CiService):
    """GitHub Actions."""

    NEXT_STEP = "give the job `permissions: id-token: write`; pull requests from forks cannot have it"

    def identity_token(self, audience: str) -> str:
        """Ask GitHub for an identity token with this audience."""
        url = self.environment.get("ACTIONS_ID_TOKEN_REQUEST_URL", "")
        if not url:
            return super().identity_token(audience)
        headers = {"Authorization": f"Bearer {self.environment.get('ACTIONS_ID_TOKEN_REQUEST_TOKEN', '')}"}
        separator = "&" if "?" in url else "?"
        return str(send("GET", f"{url}{separator}{urlencode({'audience': audience})}", headers)["value"])

    def mask(self, secret: str) -> None:
        """Register the secret with the log, which then hides it."""
        data = secret.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")  # a line break ends a command
        print(f"::add-mask::{data}", flush=True)

    @contextlib.contextmanager
    def commands_stopped(self) -> Iterator[None]:
        """Stop workflow commands: the text of a finding could be one."""
        end = secrets.token_hex(16)
        print(f"::stop-commands::{end}", flush=True)
        try:
            yield
        finally:
            print(f"::{end}::", flush=True)

    def write_summary(self, text: str) -> None:
        """Append to the summary of the job."""
        self._append("GITHUB_STEP_SUMMARY", text + "\n")

    def set_outputs(self, values: Mapping[str, str]) -> None:
        """Append to the outputs of the step. A line break in a value would begin another output."""
        if not "".join(values.values()).isprintable():
            sys.exit("the registry responded with a name or a digest that holds control characters")
        self._append("GITHUB_OUTPUT", "".join(f"{name}={value}\n" for name, value in values.items()))

    def _append(self, variable: str, text: str) -> None:
        if path := self.environment.get(variable, ""):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(text)

    def comment(self, name: str, text: str) -> str:
        """Comment on the pull request. A comment that a person wrote is never changed: the person could edit it."""
        number = re.fullmatch(r"refs/pull/([0-9]+)/\w+", self.environment.get("GITHUB_REF", ""))
        token = self.environment.get("GITHUB_TOKEN", "")
        if number is None or not token:
            return "" if number is None else "no comment: GITHUB_TOKEN is not set"
        api = self.environment.get("GITHUB_API_URL", "https://api.github.com")
        issues = f"{api}/repos/{quote(self.environment['GITHUB_REPOSITORY'])}/issues"
        headers = {
            "Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28", "User-Agent": "adapter-registry",
        }  # fmt: skip
        return self._write_comment(
            f"{issues}/{number[1]}/comments", f"{issues}/comments", headers, _comment_body(name, text),
            lambda item: item["user"]["type"] == "Bot", "PATCH",
        )  # fmt: skip


class GitLab(CiService):
    """GitLab CI/CD. The token of a job cannot write notes, so a comment needs a token of the project."""

    NEXT_STEP = "give the job `id_tokens: ADAPTER_IDENTITY_TOKEN: aud: URL OF THE REGISTRY`"

    def comment(self, name: str, text: str) -> str:
        """Write a note of the merge request, or change the one that the same user wrote about this adapter."""
        token, number = (self.environment.get(key, "") for key in ("GITLAB_NOTES_TOKEN", "CI_MERGE_REQUEST_IID"))
        if not number or not token:
            return "no comment: GITLAB_NOTES_TOKEN is not set" if number else ""
        api, headers = self.environment["CI_API_V4_URL"], {"PRIVATE-TOKEN": token}
        own_id = send("GET", f"{api}/user", headers)["id"]
        notes = f"{api}/projects/{int(self.environment['CI_PROJECT_ID'])}/merge_requests/{int(number)}/notes"
        return self._write_comment(
            notes, notes, headers, _comment_body(name, text), lambda item: item["author"]["id"] == own_id, "PUT"
        )


def _comment_body(name: str, text: str) -> str:
    return f"<!-- adapter-registry {quote(name)} -->\n{text}"[:COMMENT_LIMIT]


def find_service(environment: Mapping[str, str]) -> CiService:
    """The CI service that runs this process, by the variable that it sets."""
    services = {"GITHUB_ACTIONS": GitHub, "GITLAB_CI": GitLab}
    return next((kind for name, kind in services.items() if environment.get(name) == "true"), CiService)(environment)


# ------------------------------------------------------------------ table of verdicts
def describe_push(name: str, url: str, result: dict[str, Any], problem: dict[str, Any]) -> str:
    """Return the result of `adapter push --json`, or its error, as Markdown."""
    version = result.get("version")
    parts = [f"### Adapter {escape(name)}"]
    if version:
        path = quote(f"/adapters/{version['name']}/versions/{version['number']}")
        state = "" if result.get("created") else " It existed already."
        link = f"[version {int(version['number'])}]({quote(url, safe=':/')}{path})"
        parts.append(f"Pushed as {link}.{state} Digest {escape(version['digest'])}.")
        parts.append("\n".join(_table(version["verdicts"])))
    if result.get("alias_refused"):
        parts.append(f"❌ The alias did not move: {escape(result['alias_refused'])}")
    if problem:
        parts.append(f"❌ {escape(problem.get('detail') or problem.get('title') or 'The push failed.')}")
        parts.extend(f"- {_finding(finding)}" for finding in problem.get("findings", [])[:FINDINGS_SHOWN])
        if problem.get("next_step"):
            parts.append(f"Next: {escape(problem['next_step'])}")
    return "\n\n".join(parts) + "\n"


def _table(verdicts: list[dict[str, Any]]) -> list[str]:
    rows = ["| | check | verdict | findings |", "|---|---|---|---|"]
    for verdict in verdicts[:ROWS_LIMIT]:
        outcome, findings = verdict["outcome"], verdict.get("findings", [])
        check = f"{verdict['check']} {verdict.get('profile') or ''}".strip()
        shown = [_finding(finding) for finding in findings[:FINDINGS_SHOWN]]
        shown += [f"and {len(findings) - FINDINGS_SHOWN} more"] if len(findings) > FINDINGS_SHOWN else []
        rows.append(f"| {MARKS.get(outcome, '❔')} | {escape(check)} | {escape(outcome)} | {'<br>'.join(shown)} |")
    return rows


def _finding(finding: dict[str, Any]) -> str:
    return " ".join(escape(finding[part]) for part in ("location", "message") if finding.get(part))


def escape(text: object) -> str:
    """Return a text as code that is nothing but text in Markdown, also within a table.

    >>> escape("a|b @c")
    '<code>a&#124;b &#64;c</code>'
    """
    line = " ".join(str(text).split())
    line = line if len(line) <= TEXT_LIMIT else f"{line[:TEXT_LIMIT]}…"
    return f"<code>{re.sub('[^A-Za-z0-9 ]', _reference, line)}</code>"


def _reference(character: re.Match[str]) -> str:
    return f"&#{ord(character[0])};" if character[0].isprintable() else "&#65533;"


# ------------------------------------------------------------------ pushing
class Failed(Exception):
    """Why nothing was pushed."""


def run_adapter(environment: Mapping[str, str], *arguments: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Run a command; return its exit status, its result, and its error. Both can be empty."""
    done = subprocess.run(["adapter", *arguments], env=dict(environment), capture_output=True, text=True, check=False)
    try:
        problem = json.loads(done.stderr or "{}")
    except ValueError:  # a wrong option, or a traceback
        problem = {"detail": done.stderr.strip()}
    return done.returncode, json.loads(done.stdout or "{}"), problem


def exchange_token(environment: Mapping[str, str], identity_token: str, name: str) -> tuple[str, float]:
    """Return a token that may push this adapter, and the seconds until it ends. `Failed`."""
    variables = {**environment, "ADAPTER_IDENTITY_TOKEN": identity_token}
    status, created, problem = run_adapter(variables, "token", "exchange", "--json", "--adapter", name)
    if status != 0:
        detail = problem.get("detail") or "the identity token was not accepted"
        raise Failed(". Next: ".join(text for text in (detail, problem.get("next_step")) if text))
    ends = datetime.fromisoformat(created["token"]["expires_at"])
    return created["secret"], (ends - datetime.now(UTC)).total_seconds()


def publish(service: CiService, options: argparse.Namespace, push_options: Sequence[str]) -> int:
    """Push, and show what became of it. Returns the exit status. `Failed`."""
    url = service.environment.get("ADAPTER_REGISTRY", "").rstrip("/")
    if not url:
        raise Failed("ADAPTER_REGISTRY is not set: it is the URL of the registry")
    identity_token = service.identity_token(options.audience or url)
    if not identity_token:
        raise Failed(f"the job has no identity token: {service.NEXT_STEP}")
    service.mask(identity_token)
    environment = {name: value for name, value in service.environment.items() if name not in SECRETS}
    secret, seconds_left = exchange_token(environment, identity_token, options.name)
    service.mask(secret)
    timeout = max(1, min(options.timeout, seconds_left - MARGIN_SECONDS))
    words = ["push", "--json", "--wait", "--strict", options.folder, options.name, f"--wait-timeout={int(timeout)}s"]
    status, result, problem = run_adapter({**environment, "ADAPTER_TOKEN": secret}, *words, *push_options)
    text = describe_push(options.name, url, result, problem)
    with service.commands_stopped():
        print(text, flush=True)
        show(service, options, text)
    service.set_outputs(outputs_of(result))
    return status


def show(service: CiService, options: argparse.Namespace, text: str) -> None:
    """Write the report, the summary and the comment. A comment that fails changes no status: the verdict decides it."""
    if options.report:
        Path(options.report).write_text(text, encoding="utf-8")
    service.write_summary(text)
    try:
        done = service.comment(options.name, text) if options.comment else ""
    except (OSError, ValueError, KeyError, TypeError) as e:
        done = f"no comment: {e}"
    if done:
        print(done, flush=True)


def outputs_of(result: Mapping[str, Any]) -> dict[str, str]:
    """The outputs of the step: the version, and its worst verdict."""
    version = result.get("version")
    if not version:
        return {}
    outcomes = {verdict["outcome"] for verdict in version["verdicts"]}
    outcome = next((outcome for outcome in ("fail", "unknown", "warn") if outcome in outcomes), "pass")
    return {"ref": f"{version['name']}@{version['number']}", "digest": version["digest"], "outcome": outcome}


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Publish, and return the exit status."""
    parser = argparse.ArgumentParser(prog="publish.py", allow_abbrev=False)
    parser.add_argument("folder", metavar="DIR", help="folder of the adapter")
    parser.add_argument("name", metavar="NAME", help="name of the adapter, such as acme/support")
    parser.add_argument("--audience", default="", help="audience of the identity token; default: ADAPTER_REGISTRY")
    parser.add_argument("--timeout", type=float, default=600, help="stop waiting for verdicts after these seconds")
    parser.add_argument("--report", default="", help="also write the table to this file")
    parser.add_argument("--no-comment", dest="comment", action="store_false", help="write no comment")
    options, push_options = parser.parse_known_args(arguments)
    service = find_service(environment)
    try:
        return publish(service, options, push_options)
    except (Failed, OSError, ValueError, KeyError) as e:
        with service.commands_stopped():  # on the same stream, which keeps the order
            print(f"Error: {' '.join(str(e).split())}", flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
