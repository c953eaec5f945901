"""Which packages a command imports: what the base install lacks, and what is heavy, stays out where it has no use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Match

from registry.server import app, embedded, pages
from registry.server.routes import hub, maintenance
from registry.server.routes.openapi import routes as openapi
from tests.cli.runner import CommandRunner
from tests.import_table import ROOT

PROGRAM = """
import sys
from cli.main import main
code = main(sys.argv[1:], standalone_mode=False)
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""
OF_EXTRAS = {"fastapi", "sqlalchemy", "boto3", "numpy", "torch", "transformers", "uvicorn", "jinja2", "alembic"}


def loaded(*words: str) -> set[str]:
    """The modules of a process that ran this command."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
        env=os.environ,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.splitlines()[-1].split())


def test_a_command_to_a_server_imports_no_extra(
    cli: CommandRunner, server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTER_REGISTRY", server["url"])
    monkeypatch.setenv("ADAPTER_TOKEN", server["token"])
    cli.add_base()
    folder = cli.make_adapter("one")
    for words in (
        ("push", str(folder), "globex/one", "--json"),
        ("pull", "globex/one", str(tmp_path / "one"), "--json"),
        ("list", "--json"),
        ("whoami", "--json"),
    ):
        assert OF_EXTRAS & loaded(*words) == set(), words


def test_the_embedded_registry_has_every_route_of_the_rest_api() -> None:
    served_by_all = (*pages.ROUTERS, *hub.ROUTERS, openapi.router, maintenance.probe_router)
    routers = [router for router in app.ROUTERS if router not in served_by_all]
    on_demand = [embedded.RoutesOnDemand(path, words) for path, words in embedded.ROUTERS.items()]
    for route in (route for router in routers for route in router.routes if isinstance(route, APIRoute)):
        path = re.sub(r"{\w+(:path)?}", "1", route.path)
        for method in route.methods or ():
            scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": []}
            matched = [child for match, child in (routes.matches(scope) for routes in on_demand) if match is Match.FULL]
            assert matched[0]["route"] is route, f"{method} {path}"
