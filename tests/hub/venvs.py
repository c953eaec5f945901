"""Hub clients of other generations under `.cache/clients`, made once: about 40 MB each.

    python -m tests.hub.venvs       all of them; the JavaScript client only where there is npm

Invariants
- An environment that is whole holds a file `.ready`; what is cut off is made again.
- Each generation stands for a rule of redirects: see the table in docs/hub.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / ".cache" / "clients"
HUBS = ("0.34.4", "1.10.1", "1.33.0", "2.1.1")
"""Of huggingface_hub: the last with requests and hf_transfer, the first rule of httpx, and both ends of the generation
that follows a redirect at HEAD with its token when only the host name is the same. The newest is in .venv."""
JAVASCRIPT = "2.17.5"
"""Of @huggingface/hub."""


def are_wanted() -> bool:
    """Whether this run is to ask the other generations: `make test-hub` says so."""
    return bool(os.environ.get("HUB_CLIENTS"))


def hub_python(version: str) -> Path | None:
    """The interpreter with this huggingface_hub, if its environment is whole."""
    folder = CLIENTS / f"hub-{version}"
    return folder / "bin" / "python" if (folder / ".ready").exists() else None


def javascript() -> Path | None:
    """The folder in which node finds @huggingface/hub, if it is whole and there is a node."""
    folder = CLIENTS / f"javascript-{JAVASCRIPT}"
    return folder if (folder / ".ready").exists() and shutil.which("node") else None


def make_hub(version: str) -> None:
    folder = CLIENTS / f"hub-{version}"
    if hub_python(version) is not None:
        return
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    more = ["hf_transfer"] if version.startswith("0.") else ["click"]  # which today's typer brings along no more
    requirements = [f"huggingface_hub=={version}", *more]
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, *requirements], check=True)
    (folder / ".ready").touch()


def make_javascript() -> None:
    npm, folder = shutil.which("npm"), CLIENTS / f"javascript-{JAVASCRIPT}"
    if npm is None or javascript() is not None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    install: list[str | Path] = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run([*install, "--prefix", folder, f"@huggingface/hub@{JAVASCRIPT}"], check=True)
    (folder / ".ready").touch()


if __name__ == "__main__":
    for each in HUBS:
        make_hub(each)
    make_javascript()
