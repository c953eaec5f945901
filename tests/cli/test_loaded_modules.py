"""Which modules a command imports: import time delays every command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Match

from cli import main
from registry.server import app, embedded, pages
from registry.server.routes import hub, maintenance
from registry.server.routes.openapi import routes as openapi
from tests.cli.runner import CommandRunner
from tests.import_table import ROOT

PROGRAM = """
import json, sys
from cli.main import main
code = main(sys.argv[1:], standalone_mode=False)
from cli.main import DeferredModule
executed = {name: module for name, module in sys.modules.items() if not isinstance(module, DeferredModule)}
loaded = sorted(executed)
ours = [module for name, module in executed.items() if name.startswith(("registry.", "cli."))]
classes = {value for module in ours for value in vars(module).values() if isinstance(value, type)}
dataclasses = sum("__dataclass_fields__" in vars(each) for each in classes)
from pydantic import BaseModel

def count(model):
    return sum(1 + count(schema) for schema in model.__subclasses__() if schema.__module__.startswith("registry."))

print(json.dumps([loaded, count(BaseModel), dataclasses]), file=sys.stderr)
sys.exit(code)
"""
UNUSED_BY_ALL = (
    "registry.engines",
    "registry.compat",
    "rich",
    "httpx",
    "httpcore",
    "anyio",
    "fastapi",
    "sqlmodel",
    "torch",
)
OTHER_SCHEMAS = ("access", "aliases", "audit", "jobs", "lineage", "serving", "maintenance", "evaluation")
UNUSED = (
    *UNUSED_BY_ALL,
    *(f"registry.api.{schema}" for schema in OTHER_SCHEMAS),
    *(
        "registry.client.registry",
        "registry.client.audit",
        "registry.client.transport.in_process",
        "cli.jobs",
        "registry.jobs",
    ),
    *("registry.engines.version_facts", "registry.adapters.card", "registry.adapters.trainer"),
    *("registry.evaluation.reports", "registry.evaluation.reference_logprobs"),
)
"""Modules that neither a push nor a pull nor a list needs."""
UNUSED_BY_PUSH = ("registry.client.transfer.pull", "registry.client.local.cache", "registry.client.local.destination")
UNUSED_BY_READS = (
    *("registry.client.transfer.push", "registry.client.local.folder", "registry.adapters.read"),
    *("registry.adapters.formats", "registry.adapters.peft"),
)
UNUSED_BY_PULL = (*UNUSED_BY_READS, "registry.evaluation.golden")


@pytest.fixture
def adapters(cli: CommandRunner, server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two adapters, whose base the server knows."""
    monkeypatch.setenv("ADAPTER_REGISTRY", server["url"])
    monkeypatch.setenv("ADAPTER_TOKEN", server["token"])
    cli.add_base()
    cli.make_adapter("one")
    cli.make_adapter("two")
    return tmp_path / "adapters"


DATACLASSES_LIMIT = 3
"""A name, a ref and a finding. To define a dataclass takes 0.6 ms, and a struct (`registry.structs.Value`) 0.04."""


def run_program(program: str, *words: str, status: int = 0, of_stderr: bool = False) -> str:
    """What a program printed that ended with this status."""
    ran = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
        env=os.environ,
    )  # fmt: skip
    assert ran.returncode == status, ran.stderr
    return ran.stderr if of_stderr else ran.stdout


def loaded(*words: str) -> tuple[set[str], int, int]:
    """The executed modules of a process that ran this command, and the numbers of its schemas and its dataclasses."""
    printed = run_program(PROGRAM, *words, of_stderr=True)
    modules, schemas, dataclasses = json.loads(printed.splitlines()[-1])
    return set(modules), schemas, dataclasses


def test_a_command_loads_only_the_modules_that_it_needs(adapters: Path, tmp_path: Path) -> None:
    push, pull, bulk = (
        (UNUSED + UNUSED_BY_PUSH, 74, 64),
        (UNUSED + UNUSED_BY_PULL + ("pydantic", "registry.bases"), 54, 0),
        (UNUSED, 80, 64),
    )
    look, ask = (UNUSED + UNUSED_BY_PUSH + UNUSED_BY_PULL, 51, 58), (UNUSED_BY_ALL + UNUSED_BY_READS, 68, 157)
    for words, (unused, most_modules, most_schemas) in (
        (("push-all", str(adapters), "globex", "--base", "tiny-llama", "--json"), bulk),
        (("pull-all", str(tmp_path / "served"), "--base", "tiny-llama", "--namespace", "globex", "--json"), pull),
        (("push", str(adapters / "one"), "globex/one", "--json"), push),
        (("pull", "globex/two", str(tmp_path / "two"), "--json"), pull),
        (("list", "--json"), look),
        (("whoami", "--json"), ask),
    ):
        modules, schemas, dataclasses = loaded(*words)
        assert {"registry.client.core", "msgspec"} <= modules
        assert [name for name in unused if name in modules] == [], words
        own_modules = {name for name in modules if name.partition(".")[0] in ("registry", "cli")}
        assert len(own_modules) <= most_modules, sorted(own_modules)
        assert schemas <= most_schemas
        assert dataclasses <= (DATACLASSES_LIMIT if words[0].startswith(("push", "pull")) else 12)
    assert len(list((tmp_path / "served" / "globex").iterdir())) == 2


def test_tables_build_no_validators() -> None:
    """Rows validate nothing, and each command on the embedded registry imports all tables."""
    program = (
        "from sqlmodel import SQLModel; import registry.server.database.models; "
        "print(*(table.__name__ for table in SQLModel.__subclasses__() if table.__pydantic_complete__))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.split() == []


TABLES_OF_PUSH = ("jobs", "namespaces", "pushes")
OTHER_TABLES = ("hub", "owner_rules", "serving", "sign_in")
UNUSED_BY_EMBEDDED = (
    *("alembic", "boto3", "cryptography.hazmat.bindings._rust", "httpx", "jinja2", "jwt", "prometheus_client"),
    *("uvicorn", "yaml", "fastapi.openapi.models", "pydantic.v1", "sqlalchemy.dialects.postgresql"),
    *("registry.engines", "registry.strict.yaml", "registry.api.access", "registry.api.audit.attestations"),
    *("registry.server.access.tokens", "registry.server.audit.sequencer", "registry.server.audit.tree"),
    *(f"registry.server.database.models.{name}" for name in OTHER_TABLES),
)
UNUSED_BY_EMBEDDED_PUSH = (
    *UNUSED_BY_EMBEDDED,
    *("registry.adapters.templates", "registry.adapters.trainer", "registry.api.aliases", "registry.api.evaluation"),
    *(f"registry.evaluation.{name}" for name in ("gates", "engine_settings", "reference_logprobs")),
    *("registry.server.search.candidates", "registry.server.evaluation.engine_compat"),
    *("registry.server.promotion.gates", "registry.server.promotion.attestations"),
)
UNUSED_BY_EMBEDDED_READS = (
    *UNUSED_BY_EMBEDDED,
    "numpy",
    *(f"registry.server.database.models.{name}" for name in TABLES_OF_PUSH),
    *("registry.server.app", "registry.server.pages", "registry.server.push", "registry.server.maintenance"),
    *(
        "registry.server.hub",
        "registry.server.webhooks",
        "registry.server.storage.s3",
        "registry.server.evaluation.norms",
    ),
    *("registry.compat", "registry.attestations", "registry.server.promotion.attestations"),
    *(
        f"registry.server.routes.{name}"
        for name in ("hub", "transfer.pushes", "aliases", "jobs", "audit", "maintenance")
    ),
)


def test_a_command_on_the_embedded_registry_imports_the_routes_that_it_calls(
    cli: CommandRunner, tmp_path: Path
) -> None:
    cli.add_base()
    cli.push("acme/support")
    for words, routes, unused in (
        (("list", "--json"), "adapters", ("transfer",)),
        (("show", "acme/support", "--json"), "adapters", ("transfer",)),
        (("pull", "acme/support", str(tmp_path / "served"), "--json"), "transfer.pulls", ("adapters",)),
        (("cat", "acme/support", "adapter_config.json"), "transfer.pulls", ()),
    ):
        modules, *_ = loaded(*words)
        assert f"registry.server.routes.{routes}" in modules
        unused_here = (*UNUSED_BY_EMBEDDED_READS, *(f"registry.server.routes.{name}" for name in unused))
        assert [name for name in unused_here if name in modules] == [], words
        assert sum(name.startswith(("registry.", "cli.")) for name in modules) <= 147
    assert "vllm" in run_program(PROGRAM, "check", "acme/support", "--engine", "vllm==0.33.0")
    folder = str(cli.make_adapter("other"))
    modules, _, dataclasses = loaded("push", folder, "acme/support", "--base", "tiny-llama", "--json")
    assert [name for name in UNUSED_BY_EMBEDDED_PUSH if name in modules] == []
    assert sum(name.startswith(("registry.", "cli.")) for name in modules) <= 191
    assert dataclasses <= 18


def test_a_completion_reads_the_database_without_starting_the_embedded_registry(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.add_base()
    cli.push("acme/support")
    monkeypatch.setenv(main.COMPLETION, "bash_complete")
    program = (
        "import atexit, sys; from cli.main import main; "
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main(prog_name='adapter')"
    )
    for line, completed in (("show acme/s", "acme/support"), ("push . acme/x --base t", "tiny-llama")):
        monkeypatch.setenv("COMP_WORDS", f"adapter {line}")
        modules = set(run_program(program, of_stderr=True).split())
        assert run_program(program) == f"plain,{completed}\n"
        assert "registry.server.database.names" in modules
        assert modules.isdisjoint(("fastapi", "sqlalchemy", "sqlmodel", "asyncio", "registry.server.embedded"))
        assert sum(name.startswith(("registry.", "cli.")) for name in modules) <= 80


def test_the_embedded_registry_has_every_route_of_the_rest_api() -> None:
    served_by_all = (*pages.ROUTERS, *hub.ROUTERS, openapi.router, maintenance.probe_router)
    routers = [router for router in app.ROUTERS if router not in served_by_all]
    on_demand = [embedded.RoutesOnDemand(main.load, *router, words) for router, words in embedded.ROUTERS.items()]
    for route in (route for router in routers for route in router.routes if isinstance(route, APIRoute)):
        path = re.sub(r"{\w+(:path)?}", "1", route.path)
        for method in route.methods or ():
            scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": []}
            matched = [child for match, child in (routes.matches(scope) for routes in on_demand) if match is Match.FULL]
            assert matched[0]["route"] is route, f"{method} {path}"
