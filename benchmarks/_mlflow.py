"""MLflow's server for benchmarks/resolve.py, where an `mlflow` command is found: one model, one version, one alias.

Example
    >>> with mlflow(folder) as target:
    ...     target.paths[0] if target else "not installed"
    '/api/2.0/mlflow/registered-models/alias?name=a0&alias=prod'
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._contenders import _end
from benchmarks._registries import Target

START_SECONDS = 120
_API = "/api/2.0/mlflow"


@contextlib.contextmanager
def mlflow(scratch: Path) -> Iterator[Target | None]:
    """One worker process on a SQLite file, as ours; None where it is not installed."""
    program = shutil.which("mlflow")
    if program is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{scratch}/mlflow.db", "--artifacts-destination", f"{scratch}/mlflow"]
    quiet = os.environ | {"MLFLOW_LOGGING_LEVEL": "ERROR", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(server, url)
        _ask("POST", f"{url}{_API}/registered-models/create", name="a0")
        _ask("POST", f"{url}{_API}/model-versions/create", name="a0", source="s3://bench/a0")
        _ask("POST", f"{url}{_API}/registered-models/alias", name="a0", alias="prod", version="1")
        yield Target(url, (f"{_API}/registered-models/alias?name=a0&alias=prod",), {})
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        _end(server)


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("mlflow's server does not respond")
        time.sleep(0.2)  # another program: there is no event to wait for


def _ask(method: str, url: str, **payload: Any) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(payload).encode(), method=method, headers=headers)
    with urllib.request.urlopen(request) as response:
        response.read()
