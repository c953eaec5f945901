"""Publishing from CI: the script of action and template, with a real server and stand-ins of GitHub and GitLab."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from registry.api.access import PublisherAdd
from registry.api.bases import BaseAdd
from registry.api.jobs import ClaimRequest, FinishRequest
from registry.client.registry import Registry
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check
from registry.findings import Finding
from tests import samples
from tests.access.identity import AUDIENCE, ISSUER, Provider
from tests.base_specs import spec_of
from tests.cli.runner import CommandRunner, served
from tests.import_table import ROOT

ACTION = ROOT / ".github" / "actions" / "publish" / "action.yml"
TEMPLATE = ROOT / "templates" / "adapter-registry.gitlab-ci.yml"
SCRIPT = ACTION.parent / "publish.py"
NAME = "acme/support"
SEEDS = itertools.count(1000)  # the server is shared: each test pushes its own files
HOSTILE = (
    "|x| @team #1 <img src=x onerror=alert(1)> **b** `c` [l](https://evil.example) &lt; <!-- \u202e ::set-env name=A::"
)
_SPEC = importlib.util.spec_from_file_location("publish", SCRIPT)
assert _SPEC is not None
assert _SPEC.loader is not None
script = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script)


class CommentApi(BaseHTTPRequestHandler):
    """Stands in for both services: their identity tokens, and the comments of one pull request or merge request."""

    def handle_one(self) -> None:
        api: Any = self.server
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        api.requests.append((self.command, self.path, dict(self.headers), body))
        status, response = api.respond(self.command, self.path.partition("?")[0], self.headers, body)
        data = json.dumps(response).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"http://localhost:{api.server_port}/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_PUT = handle_one

    def log_message(self, *_: object) -> None:
        pass


class Service(ThreadingHTTPServer):
    """The API on a port. `comments` is what stands there; `refuses` is a status for every change."""

    def __init__(self, provider: Provider) -> None:
        super().__init__(("127.0.0.1", 0), CommentApi)
        self.provider = provider
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.comments: list[dict[str, Any]] = []
        self.refuses = 0
        self.issued: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def respond(self, method: str, path: str, headers: Any, body: Any) -> tuple[int, Any]:
        if path == "/token":
            self.issued.append(self.provider.sign())
            return (200, {"value": self.issued[-1]}) if headers["Authorization"] == "Bearer of-the-job" else (401, {})
        if "comment-token" not in (headers["PRIVATE-TOKEN"], (headers["Authorization"] or "").removeprefix("Bearer ")):
            return 401, {}
        if path == "/user":
            return 200, {"id": 7}
        if method == "GET":
            return 200, self.comments
        if self.refuses:
            return self.refuses, {}
        if method == "POST":
            author = {"user": {"type": "Bot"}, "author": {"id": 7}}
            self.comments.append({"id": len(self.comments) + 1, **author, **body})
        else:
            self.comments[int(path.rpartition("/")[2]) - 1]["body"] = body["body"]
        return 200, {}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Provider:
    return Provider(tmp_path_factory.mktemp("provider"))


@pytest.fixture(scope="module")
def publishing(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[tuple[str, Registry]]:
    """A server with a trusted publisher of NAME, and its administrator."""
    with (
        served(tmp_path_factory.mktemp("publishing"), REGISTRY_ISSUERS=provider.settings) as (_, printed),
        Registry(printed["url"], printed["token"]) as admin,
    ):
        admin.add_base(BaseAdd(spec=spec_of(samples.llama()), source="test"))
        admin.create_namespace("acme")
        admin.add_publisher(NAME, PublisherAdd(issuer=ISSUER, claims={"repository": "acme/train"}))
        yield printed["url"], admin


@pytest.fixture
def service(provider: Provider) -> Iterator[Service]:
    with Service(provider) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.02,))
        thread.start()
        yield service
        service.shutdown()
        thread.join()


@pytest.fixture
def environment(
    publishing: tuple[str, Registry], service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The variables of a job of a pull request on GitHub, whose PATH has the command."""
    program = tmp_path / "adapter-registry" / "bin" / "adapter"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cli.main "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return dict(os.environ) | {
        "GITHUB_ACTIONS": "true", "GITHUB_REF": "refs/pull/12/merge", "GITHUB_REPOSITORY": "acme/train",
        "GITHUB_API_URL": service.url, "GITHUB_TOKEN": "comment-token", "ADAPTER_REGISTRY": publishing[0],
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{service.url}/token?api-version=2.0",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-job", "ADAPTER_TOKEN": "",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "GITHUB_OUTPUT": str(tmp_path / "outputs"),
    }  # fmt: skip


def gitlab(environment: dict[str, str], service: Service) -> dict[str, str]:
    """The variables of a job of a merge request on GitLab."""
    others = {key: value for key, value in environment.items() if not key.startswith(("GITHUB", "ACTIONS"))}
    return others | {
        "GITLAB_CI": "true", "CI_API_V4_URL": service.url, "CI_PROJECT_ID": "42", "CI_MERGE_REQUEST_IID": "5",
        "GITLAB_NOTES_TOKEN": "comment-token", "ADAPTER_IDENTITY_TOKEN": service.provider.sign(),
        "GITHUB_ACTIONS": "",
    }  # fmt: skip


def finish_smoke_test(admin: Registry, *findings: Finding) -> threading.Thread:
    """A worker that finishes the next smoke test. The queue has no event that it could wait for."""
    given_up = threading.Event()
    timer = threading.Timer(60, given_up.set)
    timer.daemon = True
    timer.start()

    def work() -> None:
        while (claimed := admin.claim(ClaimRequest(worker="test"))) is None and not given_up.wait(0.1):
            pass
        assert claimed is not None
        version = admin.version(claimed.job.subject)
        report = Report(
            check=Check.SMOKE, subject=version.digest, base=version.base, base_fingerprint=version.base_fingerprint,
            findings=findings, made_by={"worker": "test"},
        )  # fmt: skip
        admin.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))
        timer.cancel()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_job_of_github_pushes_and_comments_once(
    cli: CommandRunner, publishing: tuple[str, Registry], service: Service, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = cli.make_adapter("out", seed=next(SEEDS))
    worker = finish_smoke_test(publishing[1], Finding.of("warning", "smoke.drift", HOSTILE, HOSTILE))
    words = [str(folder), NAME, "--base", "tiny-llama", f"--audience={AUDIENCE}"]
    assert script.main(words, environment) == 0
    worker.join()
    version = publishing[1].version(NAME)
    token_request = service.requests[0]
    assert token_request[1] == f"/token?api-version=2.0&audience={AUDIENCE.replace(':', '%3A').replace('/', '%2F')}"
    methods = [(method, path.partition("?")[0]) for method, path, _, _ in service.requests[1:]]
    assert methods == [(m, "/repos/acme/train/issues/12/comments") for m in ("GET", "POST")]
    assert service.requests[-1][2]["X-Github-Api-Version"] == "2022-11-28"
    comment = service.comments[0]["body"]
    assert f"{publishing[0]}/adapters/{NAME}/versions/{version.number}" in comment
    assert comment.endswith((tmp_path / "summary.md").read_text()[:-1])
    outputs = dict(line.split("=", 1) for line in (tmp_path / "outputs").read_text().splitlines())
    assert outputs == {"ref": f"{NAME}@{version.number}", "digest": version.digest, "outcome": "warn"}
    assert script.main(words, environment) == 0
    assert service.requests[-1][:2] == ("PATCH", "/repos/acme/train/issues/comments/1")
    assert "It existed already." in service.comments[0]["body"]
    assert len(service.comments) == 1


def test_a_job_that_is_repeated_without_a_worker_has_no_verdict_either(
    cli: CommandRunner, publishing: tuple[str, Registry], environment: dict[str, str]
) -> None:
    folder = cli.make_adapter("out", seed=next(SEEDS))
    words = [str(folder), NAME, "--base", "tiny-llama", f"--audience={AUDIENCE}", "--timeout=1"]
    assert [script.main(words, environment) for _ in range(2)] == [75, 75]
    [job] = publishing[1].jobs(ref=f"{NAME}@{publishing[1].version(NAME).number}").items
    publishing[1].cancel(job.id)


@pytest.mark.security
def test_secrets_are_masked_before_anything_else_and_printed_nowhere_else(
    capfd: pytest.CaptureFixture[str],
    cli: CommandRunner,
    publishing: tuple[str, Registry],
    service: Service,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    folder = cli.make_adapter("out", seed=next(SEEDS))
    worker = finish_smoke_test(publishing[1], Finding.of("error", "smoke.not_finite", HOSTILE, "\n::warning::x\n"))
    assert script.main([str(folder), NAME, f"--audience={AUDIENCE}", "--base=tiny-llama"], environment) == 6
    worker.join()
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    masks = [line for line in lines if line.startswith("::add-mask::")]
    assert lines[:2] == masks
    secrets = [line.removeprefix("::add-mask::") for line in masks]
    assert secrets[0] == service.issued[0]
    assert secrets[1].startswith("lra_")
    written = [path.read_text() for path in tmp_path.glob("*.md")] + [comment["body"] for comment in service.comments]
    rest = "".join([printed.err, *written, *lines[2:]])
    for secret in (*secrets, "comment-token", "of-the-job"):
        assert secret not in rest
    end = lines[2].removeprefix("::stop-commands::")
    assert lines[-1] == f"::{end}::"
    assert not [line for line in lines[3:-1] if line.lstrip().startswith("::")]


@pytest.mark.security
def test_a_secret_that_a_registry_chose_is_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    script.GitHub({}).mask("lra_a\n::set-output name=outcome::pass\r%0A")
    assert capsys.readouterr().out == "::add-mask::lra_a%0A::set-output name=outcome::pass%0D%250A\n"


def test_a_fail_and_a_refused_comment_end_with_6(
    capfd: pytest.CaptureFixture[str],
    cli: CommandRunner,
    publishing: tuple[str, Registry],
    service: Service,
    environment: dict[str, str],
) -> None:
    service.refuses = 403
    folder = cli.make_adapter("misfit", samples.llama(hidden=16), seed=next(SEEDS))
    assert script.main([str(folder), NAME, "--base=tiny-llama", f"--audience={AUDIENCE}"], environment) == 6
    printed = capfd.readouterr().out
    assert "❌" in printed
    assert "no comment: 127.0.0.1 responded with 403 to POST" in printed
    newest = publishing[1].versions(NAME).items[0]
    assert publishing[1].version(f"{NAME}@{newest.number}").verdicts[0].outcome == "fail"


@pytest.mark.security
def test_only_our_own_comment_is_changed_and_no_redirect_is_followed(
    capfd: pytest.CaptureFixture[str], cli: CommandRunner, service: Service, environment: dict[str, str]
) -> None:
    marker = "<!-- adapter-registry acme/support -->\nall good"
    service.comments = [{"id": 1, "user": {"type": "User"}, "author": {"id": 8}, "body": marker}]
    folder = cli.make_adapter("broken", seed=next(SEEDS))
    (folder / "adapter_config.json").write_text("{")
    words = [str(folder), NAME, "--base=tiny-llama", f"--audience={AUDIENCE}"]
    assert script.main(words, environment) == 2
    assert script.main(words, gitlab(environment, service)) == 2
    assert service.comments[0]["body"] == marker
    assert len(service.comments) == 2
    assert [r[0] for r in service.requests].count("PUT") == 1, "the other service's note is the same comment here"
    service.refuses, before = 302, len(service.requests)
    assert script.main(words, environment) == 2
    assert "responded with 302" in capfd.readouterr().out
    assert all("/elsewhere" not in path for _, path, _, _ in service.requests[before:])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ACTIONS_ID_TOKEN_REQUEST_URL": ""}, "id-token: write"),
        ({"ADAPTER_REGISTRY": ""}, "ADAPTER_REGISTRY is not set"),
        ({"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x"}, "responded with 401"),
    ],
)
def test_a_job_that_cannot_publish_is_told_why(
    capfd: pytest.CaptureFixture[str], environment: dict[str, str], changed: dict[str, str], message: str
) -> None:
    assert script.main(["out", NAME], environment | changed) == 2
    assert message in capfd.readouterr().out


def test_a_job_that_no_publisher_of_the_adapter_allows_is_told_where_to_look(
    capfd: pytest.CaptureFixture[str], environment: dict[str, str]
) -> None:
    assert script.main(["out", "acme/other"], environment) == 2
    shown = capfd.readouterr().out
    assert "no trusted publisher of the adapter, or without `jti`. Next: " in shown
    assert "adapter publisher list NAME" in shown


@pytest.mark.security
def test_an_error_is_no_command_and_python_imports_nothing_of_the_checkout(
    capfd: pytest.CaptureFixture[str], environment: dict[str, str]
) -> None:
    """A line with `##[…]` anywhere in it is a command, too; `python3 -m venv` would run the checkout's venv.py."""
    hostile = "acme/x ##[add-mask]x"
    assert script.main(["out", hostile], environment) == 2
    begin, error, end = capfd.readouterr().out.splitlines()[-3:]
    assert "##[add-mask]" in error
    assert begin.removeprefix("::stop-commands::") == end.strip(":")
    steps = yaml.safe_load(ACTION.read_text())["runs"]["steps"]
    job = list(yaml.safe_load_all(TEMPLATE.read_text()))[1]["publish-adapter"]
    lines = "\n".join([*(step["run"] for step in steps), *job["before_script"], *job["script"]])
    assert lines.count("python3 ") == lines.count("python3 -I ") == 3


def test_the_action_and_the_template_push_what_their_inputs_name(
    publishing: tuple[str, Registry], service: Service, environment: dict[str, str], cli: CommandRunner, tmp_path: Path
) -> None:
    values = {
        "registry": publishing[0], "adapter": NAME, "base": "tiny-llama",
        "folder": str(cli.make_adapter("by action", seed=next(SEEDS))),
        "message": "$(touch hacked) `touch hacked` '\"", "audience": AUDIENCE, "token": "comment-token",
        "options": "--tag\nteam=nlp with words\n",
    }  # fmt: skip
    action = yaml.safe_load(ACTION.read_text())
    step = next(step for step in action["runs"]["steps"] if step.get("id") == "publish")
    step["env"].pop("ACTION_FOLDER")
    filled = {"ACTION_FOLDER": str(ACTION.parent)} | fill(
        step["env"], r"\${{ inputs\.(\w+) }}", action["inputs"], values
    )
    variables = environment | {"RUNNER_TEMP": str(tmp_path)}
    worker = finish_smoke_test(publishing[1])
    subprocess.run(["bash", "-e", "-c", step["run"]], env=variables | filled, check=True, cwd=tmp_path)
    worker.join()
    version = publishing[1].version(NAME)
    assert (version.message, version.tags["team"]) == (values["message"], "nlp with words")

    spec, jobs = yaml.safe_load_all(TEMPLATE.read_text())
    job = jobs["publish-adapter"]
    values["folder"] = str(cli.make_adapter("by template", seed=next(SEEDS)))
    filled = fill(job["variables"], r"\$\[\[ inputs\.(\w+) \]\]", spec["spec"]["inputs"], values)
    folder = tmp_path / "builds" / "adapter-registry"
    folder.parent.mkdir()
    folder.symlink_to(ROOT)
    variables = gitlab(environment, service) | {"CI_BUILDS_DIR": str(folder.parent)}
    worker = finish_smoke_test(publishing[1])
    subprocess.run(["sh", "-e", "-c", "\n".join(job["script"])], env=variables | filled, check=True, cwd=tmp_path)
    worker.join()
    assert publishing[1].version(NAME).number == version.number + 1
    assert (tmp_path / job["artifacts"]["paths"][0]).read_text().count("✅") >= 2
    assert not (tmp_path / "hacked").exists()


def fill(variables: dict[str, str], pattern: str, inputs: dict[str, Any], values: dict[str, str]) -> dict[str, str]:
    """The variables with the values of inputs, which must be described, or with their defaults."""
    return {
        name: re.sub(pattern, lambda match: values.get(match[1], str(inputs[match[1]].get("default", ""))), value)
        for name, value in variables.items()
    }


def test_scripts_hold_no_expression_and_every_input_is_described_and_used() -> None:
    action = yaml.safe_load(ACTION.read_text())
    steps = action["runs"]["steps"]
    assert all("${{" not in step["run"] for step in steps)
    spec, jobs = yaml.safe_load_all(TEMPLATE.read_text())
    assert "[[" not in "".join(jobs["publish-adapter"]["script"] + jobs["publish-adapter"]["before_script"])
    for inputs, text, pattern in (
        (action["inputs"], json.dumps(steps), r"inputs\.(\w+)"),
        (spec["spec"]["inputs"], json.dumps(jobs), r"inputs\.(\w+)"),
    ):
        assert set(re.findall(pattern, text)) == set(inputs)
        assert all(described["description"].endswith(".") for described in inputs.values())


def test_the_page_names_inputs_that_exist() -> None:
    text = (ROOT / "docs" / "ci.md").read_text()
    github, gitlab_job = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    step = github["jobs"]["train"]["steps"][-1]
    assert step["uses"].partition("@")[0].endswith("/.github/actions/publish")
    spec = next(yaml.safe_load_all(TEMPLATE.read_text()))
    include = gitlab_job["include"][0]
    assert include["file"] == f"/{TEMPLATE.relative_to(ROOT)}"
    for used, inputs in (
        (step["with"], yaml.safe_load(ACTION.read_text())["inputs"]),
        (include["inputs"], spec["spec"]["inputs"]),
    ):
        required = {name for name, described in inputs.items() if "default" not in described}
        assert required <= set(used) <= set(inputs)


class Cells(HTMLParser):
    """The tags of rendered Markdown, and what its code elements say."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        self.tags.add(tag)
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts[-1:] = [self.texts[-1] + data] if self.texts else [data]


@pytest.mark.security
def test_hostile_texts_are_text_in_every_part_of_the_table() -> None:
    finding = {"location": HOSTILE, "message": f"{HOSTILE}\n\n# head\n- item"}
    verdict = {"check": HOSTILE, "profile": HOSTILE, "outcome": HOSTILE, "findings": [finding] * 7}
    version = {"name": NAME, "number": 3, "digest": HOSTILE, "verdicts": [verdict]}
    problem = {"detail": HOSTILE, "findings": [finding], "next_step": HOSTILE}
    result = {"version": version, "alias_refused": HOSTILE}
    text = script.describe_push(HOSTILE, "https://registry.example.org", result, problem)
    cells = Cells()
    cells.feed(MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text))
    allowed = {"a", "br", "code", "h3", "li", "p", "table", "tbody", "td", "th", "thead", "tr", "ul"}
    assert cells.tags <= allowed
    shown = HOSTILE.replace("\u202e", "\ufffd")
    assert sum(shown in text for text in cells.texts) >= 8
    assert not re.search(r"@|evil\.example|onerror=|::|#1 ", text)
