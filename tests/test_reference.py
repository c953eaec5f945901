"""The reference pages are what the code says, and nothing that the code offers is missing in them.

`make reference` writes the pages anew.
"""

from __future__ import annotations

import ast
import re
from typing import get_args

import click
import pytest

from cli import main
from registry import errors
from registry.events import EventType
from registry.findings import Severity
from registry.server import app
from registry.server.http.middleware import BODY_BYTES_PER_SECOND
from scripts import reference
from scripts.reference import cli, findings, limits, rest, settings
from scripts.reference import errors as error_page
from tests import import_table
from tests.import_table import ROOT


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_reference_page_is_what_the_code_says(name: str) -> None:
    assert (reference.FOLDER / name).read_text() == reference.PAGES[name](), "run `make reference`"


def test_every_page_of_the_folder_is_generated() -> None:
    assert {path.name for path in reference.FOLDER.iterdir()} == set(reference.PAGES)


def test_every_command_and_option_has_a_help_text() -> None:
    silent = []
    for name, command in cli.commands("adapter", main.main):
        if not command.help:
            silent.append(name)
        options = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
        silent += [f"{name} {option.opts[0]}" for option in options if not option.help]
    assert silent == []


def test_every_error_code_has_a_meaning_and_a_next_step() -> None:
    kinds: tuple[type[errors.RegistryError], ...] = (errors.RegistryError, *errors.CLASSES)
    codes = {code for kind in kinds for code in kind.CODES}
    assert set(error_page.rows()) == codes
    assert [code for code, row in error_page.rows().items() if not (row["means"] and row["fix"])] == []


def test_the_page_says_which_options_are_required() -> None:
    rows = {line for line in cli.markdown().splitlines() if line.startswith("| `--issuer`")}
    assert rows == {"| `--issuer` `TEXT` | Issuer of the identity tokens (their claim `iss`). Required. |"}


def test_the_texts_on_slow_bodies_name_the_rate_of_the_code() -> None:
    rate = f"{BODY_BYTES_PER_SECOND // 1024} KiB per second"
    meanings = {name: meaning for name, meaning, _ in settings.server()}
    assert rate in meanings["REGISTRY_STALL_SECONDS"]
    assert rate in error_page.rows()["BODY_STALLED"]["means"]


def test_every_variable_that_the_code_reads_is_documented_and_every_documented_one_is_read() -> None:
    texts = "\n".join(import_table.sources().values())
    codes = {code for kind in errors.CLASSES for code in kind.CODES}
    read = {
        node.value
        for source in import_table.sources().values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"(?:ADAPTER|REGISTRY)_[A-Z0-9_]*[A-Z0-9]", node.value)
    } - codes
    client = {name for group in settings.client().values() for name in group}
    server = {name for name, _, _ in settings.server()}
    assert read - client - server == set()
    assert {name for name in client if name not in texts} == set()


OTHER_NAMES = {"reach", "append"}  # functions whose first words are failpoints and events


def test_every_route_of_the_server_is_on_the_page() -> None:
    text = rest.markdown()
    routes = {f"{method} {path.replace(':path}', '}')}" for method, path in app.declared_scopes() if method != "HEAD"}
    assert {route for route in routes if f"{route}\n" not in text and f"{route}`" not in text} == {
        "GET /docs",
        "GET /openapi.json",
    }


def finding_codes() -> set[str]:
    """Every dotted code that the code writes down, except events, failpoints, columns and file names."""
    families = "|".join(findings.groups())
    codes: set[str] = set()
    others = {*EventType, "audit.key"}
    for module, source in import_table.sources().items():
        if module.startswith(("migrations", "registry.server.database.models", "registry.api.operations")):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OTHER_NAMES:
                others |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(rf"({families})\.[a-z_]+", text):
                codes.add(text)
    return {code for code in codes - others if not code.endswith((".json", ".py", ".html"))}


def test_every_finding_code_has_a_meaning() -> None:
    assert finding_codes() - findings.codes() == set()


def test_every_documented_finding_code_is_one_of_the_code() -> None:
    """Written whole, or put together from its parts."""
    texts = "\n".join(import_table.sources().values())
    for code in sorted(findings.codes() - finding_codes()):
        name = code.split(".")[1]
        assert f'"{name}"' in texts or all(f'"{part}"' in texts for part in name.split("_")), code


def test_every_finding_of_a_verdict_has_the_severity_of_its_row() -> None:
    """Only `report` of the check `compat` may name another one, for a case that differs."""
    rows = {
        f"{family}.{code}": row["severity"].split(" or ")
        for family in ("compat", "format", "lora", "weights", "smoke")
        for code, row in findings.groups()[family]["codes"].items()
    }
    assert {severity for severities in rows.values() for severity in severities} == {*get_args(Severity)}
    different = [
        f"{module}:{node.lineno} {severity}"
        for module, source in import_table.sources().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        for words in [[a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]]
        for code in words if code in rows
        for severity in {node.func.attr, *words} & {*get_args(Severity)}
        if severity not in rows[code]
    ]  # fmt: skip
    assert different == []


def test_the_rows_of_compat_say_what_the_check_reads() -> None:
    rows = findings.groups()["compat"]["codes"].values()
    assert {row["severity"] for row in rows} == {*get_args(Severity)}
    assert {row.get("follows_from", "modules") for row in rows} == {"modules", "claimed base"}


def test_the_pages_are_marked_as_generated() -> None:
    assert "docs/reference/*.md linguist-generated merge=union" in (ROOT / ".gitattributes").read_text()


INTERNAL_LIMITS = {
    "a batch of internal work; the next batch goes on": [
        "registry.server.promotion.removal.RECORDS_LIMIT", "registry.server.maintenance.gc.FAILURES_LIMIT",
        "registry.server.promotion.deletion.NEEDS_LIMIT",
        "registry.server.maintenance.fsck.check.FINDINGS_LIMIT", "registry.server.maintenance.reindex.FINDINGS_LIMIT",
        "registry.server.audit.SCAN_LIMIT", "registry.server.audit.OBJECT_SCAN_LIMIT",
        "registry.server.audit.audit_log.STEP_LIMIT_SECONDS", "registry.server.audit.audit_log.ENTRIES_LIMIT",
        "registry.server.audit.audit_log.PATHS_LIMIT", "registry.server.audit.audit_log.READS_LIMIT",
        "registry.server.search.candidates.CANDIDATES_LIMIT",
        "registry.server.search.candidates.MORE_CANDIDATES_LIMIT", "registry.server.search.candidates.COMMON_LIMIT",
        "registry.server.search.candidates.SELECTIONS_LIMIT",
        "registry.server.http.metrics.COUNT_LIMIT",
    ],
    "a cache forgets and reads again": [
        "registry.adapters.read.PIECES_LIMIT", "registry.adapters.read.BYTES_LIMIT",
        "registry.server.push.inspect.FITS_LIMIT",
        "registry.server.resolve_cache.middleware.ENTRIES_LIMIT",
        "registry.server.resolve_cache.middleware.BYTES_LIMIT",
        "registry.server.resolve_cache.middleware.STALE_LIMIT_SECONDS", "registry.server.storage.s3.store.CACHE_LIMIT",
        "registry.server.push.received.BLOB_LIMIT_BYTES", "registry.server.push.received.LIMIT_BYTES",
    ],
    "calls of other systems; their errors name the call": [
        "registry.server.storage.s3.bucket.ATTEMPTS_LIMIT",
        "registry.server.access.oidc_client.REDEEM_LIMIT", "registry.server.webhooks.target.LOOKUPS_LIMIT",
        "registry.server.failpoints.WAIT_LIMIT_SECONDS",
    ],
    "sessions of a database": [
        "registry.server.database.engine.IDLE_LIMIT_MS", "registry.server.database.engine.LOCK_LIMIT_MS",
        "registry.server.database.engine.STATEMENT_LIMIT_MS", "registry.server.database.locks.LEASE_SECONDS",
    ],
    "files of the server and its operator": [
        "registry.server.audit.keys.LIMIT_BYTES", "registry.server.catalog.metadata_backup.RECORD_LIMIT_BYTES",
    ],
    "what is shown of a longer text or list": [
        "registry.adapters.formats.images.TEXT_LIMIT",
        "registry.adapters.safetensors.FINDINGS_LIMIT",
        "registry.adapters.trainer.NUMBER_LIMIT", "registry.engines.version_facts.LINES_LIMIT",
        "registry.engines.version_facts.TARGETS_LIMIT", "registry.findings.ERRORS_LIMIT",
        "registry.findings.TEXT_LIMIT", "registry.findings.MESSAGE_LIMIT", "registry.lineage.diagrams.LABEL_LIMIT",
        "registry.server.database.engine.REASON_LIMIT", "registry.server.http.problems.FINDINGS_LIMIT",
        "registry.strict.fields.FINDINGS_LIMIT", "registry.tlog.replay.PROBLEMS_LIMIT",
        "registry.bases.identity.MARKS_LIMIT", "registry.server.jobs.requests.OPEN_LIMIT",
        "registry.training.uploads.REASON_LIMIT", "registry.server.push.commit.REFUSAL_LIMIT",
        "registry.sdk.models.REASON_LIMIT",
        "registry.server.pages.readme.READ_LIMIT_BYTES", "registry.server.pages.readme.HTML_LIMIT",
        "registry.server.pages.readme.PLAIN_LIMIT", "registry.server.pages.readme.CELLS_LIMIT",
        "registry.server.pages.versions.CELLS_LIMIT", "registry.server.pages.rendering.MARKS_LIMIT",
        "registry.server.pages.versions.REPORT_LIMIT_BYTES", "registry.server.routes.hub.pushing.WARNING_LIMIT",
    ],
    "forms of the server's own pages, and links that it prints": [
        "registry.server.sessions.visitors.FIELDS_LIMIT", "registry.server.sessions.visitors.NEXT_LIMIT",
        "registry.server.sessions.one_time_links.LINKS_LIMIT", "registry.server.sessions.visitors.COOKIE_LIMIT",
        "registry.server.pages.operations.live.PATH_LIMIT",
    ],
    "sizes of the table of files, which the page shows": [
        "registry.versions.files.CONFIG_LIMIT_BYTES", "registry.versions.files.FILE_LIMIT_BYTES",
    ],
}  # fmt: skip
"""Why no user meets a limit, and the limits."""


LIMIT_CONSTANT = (
    r"^([A-Z]\w*_LIMIT(?:_[A-Z]+)?|LIMIT_[A-Z]+|KEEP_\w+|(?:\w+_)?(?:LIFETIME|LEASE|SESSION)_SECONDS)(?:: \w+)? = "
)
"""An assignment of a limit, or of how long something is kept or valid."""


def test_every_limit_of_server_domain_and_schemas_is_on_the_page_or_internal() -> None:
    others = ("registry.client", "registry.serving", "registry.worker")
    in_code = {
        f"{module}.{name}"
        for module, source in import_table.sources().items()
        if module.startswith("registry") and not module.startswith(others)
        for name in re.findall(LIMIT_CONSTANT, source, re.MULTILINE)
    }
    on_page = {
        f"{module}.{name}" for modules in limits.LIMITS.values() for module in modules for name in modules[module]
    }
    internal = {name for names in INTERNAL_LIMITS.values() for name in names}
    assert len(in_code) > 100
    assert sorted(in_code - on_page - internal) == []
    assert sorted(internal - in_code | internal & on_page) == []
