"""Hub clients of other generations, and a trainer, under `.cache/clients`, made once: about 40 MB each.

    python -m tests.hub.venvs       all of them; the JavaScript client only where there is npm

Invariants
- An environment that is whole holds a file `.ready`; what is cut off is made again.
- Each generation stands for a rule of redirects: see the table in docs/hub.md.
- An environment beside that of these tests has its packages, too: torch, transformers and the newest client.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / ".cache" / "clients"
HUBS = ("0.34.4", "1.10.1", "1.33.0", "2.1.1")
"""Of huggingface_hub: the last with requests and hf_transfer, the first rule of httpx, and both ends of the generation
that follows a redirect at HEAD with its token when only the host name is the same. The newest is in .venv."""
JAVASCRIPT = "2.17.5"
"""Of @huggingface/hub."""
TRL = "1.16.0"
SUITE = ("pytest-asyncio==1.5.0", "pytest-mock==3.17.0", "pytest-timeout==2.4.0", "jedi==0.20.1")
"""What huggingface_hub's own tests import, beside what it needs itself."""


def are_wanted() -> bool:
    """Whether this run is to ask the other generations: `make test-hub` says so."""
    return bool(os.environ.get("HUB_CLIENTS"))


def python_of(name: str) -> Path | None:
    """The interpreter of this environment, if it is whole."""
    folder = CLIENTS / name
    return folder / "bin" / "python" if (folder / ".ready").exists() else None


def hub_python(version: str) -> Path | None:
    """The interpreter with this huggingface_hub, if its environment is whole."""
    return python_of(f"hub-{version}")


def javascript() -> Path | None:
    """The folder in which node finds @huggingface/hub, if it is whole and there is a node."""
    folder = CLIENTS / f"javascript-{JAVASCRIPT}"
    return folder if (folder / ".ready").exists() and shutil.which("node") else None


def make(name: str, requirements: Sequence[str], *, beside: bool = False) -> None:
    """Make an environment with these packages; `beside`: it also has the packages of this one."""
    folder = CLIENTS / name
    if (folder / ".ready").exists():
        return
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    if beside:
        [packages] = folder.glob("lib/python*/site-packages")
        (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
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
    for version in HUBS:
        more = "hf_transfer" if version.startswith("0.") else "click"  # which today's typer brings along no more
        make(f"hub-{version}", [f"huggingface_hub=={version}", more])
    make(f"trl-{TRL}", [f"trl=={TRL}"], beside=True)
    make("suite", SUITE, beside=True)
    make_javascript()
