"""OpenSSF's model_signing under `.cache/signing`, brought once (100 MB), and what it is asked here.

    python -m tests.signing.tool        install it

Invariants
- An environment that is whole holds a file `.ready`; what is cut off is made again.
- 1.1.1 does not say that it needs pyOpenSSL, which its own dependencies brought along when it was published.

Example
    Tool().sign_with_key(folder, key, out)
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = "1.1.1"
FOLDER = ROOT / ".cache" / "signing" / f"model-signing-{VERSION}"


def is_wanted() -> bool:
    """Whether this run is to ask the real tool: `make test-signing` says so."""
    return bool(os.environ.get("MODEL_SIGNING")) and (FOLDER / ".ready").exists()


def install() -> None:
    if (FOLDER / ".ready").exists():
        return
    python = FOLDER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", FOLDER], check=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, f"model-signing=={VERSION}", "pyOpenSSL"], check=True)
    (FOLDER / ".ready").touch()


class Tool:
    """The command `model_signing`. Folders come in, bundles go out."""

    def sign_with_key(self, folder: Path, key: Path, out: Path) -> Path:
        self._run("sign", "key", "--private_key", key, "--signature", out, folder)
        return out

    def sign_with_certificate(self, folder: Path, key: Path, leaf: Path, chain: Sequence[Path], out: Path) -> Path:
        above = [word for path in chain for word in ("--certificate_chain", path)]
        options = ["--private_key", key, "--signing_certificate", leaf, *above]
        self._run("sign", "certificate", *options, "--signature", out, folder)
        return out

    def verifies(self, folder: Path, public_key: Path, signature: Path) -> bool:
        """Whether it takes a bundle for this folder; files that nobody signed count against it."""
        arguments: list[str | Path] = ["verify", "key", "--public_key", public_key, "--signature", signature, folder]
        return subprocess.run([FOLDER / "bin" / "model_signing", *arguments], capture_output=True).returncode == 0

    def _run(self, *words: object) -> None:
        done = subprocess.run([FOLDER / "bin" / "model_signing", *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"model_signing {words}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    install()
