"""Builds and runs images with podman, without an image registry: their base is made with debootstrap on this machine.

- `build_base` copies the Python of the tests onto a minimal Debian. It is kept between runs.
- Builds see pip's configuration of this machine, so that they find packages where it finds them.
- The machine's own containers and volumes are not touched: images and state lie in a folder of the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.import_table import ROOT

IMAGES = Path(__file__).parent / "images"
PROGRAMS = ("podman", "podman-compose", "debootstrap", "runc")
PIP_FILES = ("/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs/ca-certificates.crt")
CONTAINERS_CONF = """[containers]
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE_CONF = """[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


def missing() -> str:
    """Why images cannot be built here, or nothing."""
    if os.geteuid() != 0:
        return "building images takes root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return f"not installed: {', '.join(absent)} (Debian packages)" if absent else ""


@dataclass(frozen=True)
class Podman:
    """podman with its state in `folder`."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "containers.conf").write_text(CONTAINERS_CONF)
        (self.folder / "storage.conf").write_text(STORAGE_CONF.format(folder=self.folder))

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }

    def run(self, *arguments: str | Path, stdin: str | None = None, check: bool = True) -> str:
        """What `podman ARGUMENTS` prints; with `check` its failure fails the test with all that it printed."""
        return self.command("podman", *arguments, stdin=stdin, check=check)

    def command(
        self,
        *words: str | Path,
        stdin: str | None = None,
        check: bool = True,
        cwd: Path = ROOT,
        environment: dict[str, str] | None = None,
    ) -> str:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, cwd=cwd, env=self.environment | (environment or {})
        )
        if check and done.returncode:
            shown = " ".join(str(word) for word in words[:6])
            raise AssertionError(f"{shown} … ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    def has(self, image: str) -> bool:
        return bool(self.run("images", "--quiet", image).strip())

    def build(self, file: Path, image: str, context: Path, *options: str) -> str:
        return self.run("build", "--quiet", "--network=host", f"--file={file}", f"--tag={image}", *options, context)


def build_base(podman: Podman) -> str:
    """The image that the images under test are built from, and those of the services."""
    image = f"localhost/test-python:{sys.version_info.major}.{sys.version_info.minor}"
    if not podman.has(image):
        context = podman.folder / "base"
        shutil.rmtree(context, ignore_errors=True)
        debootstrap = ["debootstrap", "--variant=minbase", "--include=python3-venv,ca-certificates,adduser"]
        podman.command(*debootstrap, "stable", context / "debian")
        prefix = Path(sys.base_prefix)
        ignore = shutil.ignore_patterns("site-packages", "test", "tests", "__pycache__", "*.a", "idlelib", "tkinter")
        if prefix == Path("/usr"):  # Debian's own Python, which is there already
            (context / "python").mkdir()
        else:
            for name in ("bin", "lib"):
                shutil.copytree(prefix / name, context / "python" / name, ignore=ignore, symlinks=True)
        podman.build(IMAGES / "base.containerfile", image, context)
        shutil.rmtree(context)
    return image


def build_service(podman: Podman, name: str, base: str) -> str:
    """The image of a service: its Debian package with the interface of the official image."""
    image = f"localhost/test-{name}"
    if not podman.has(image):
        context = podman.folder / name
        shutil.copytree(IMAGES, context, dirs_exist_ok=True)
        if name == "bucket":
            weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
            shutil.copy(Path(weed or "weed").resolve(), context / "weed")
        podman.build(IMAGES / f"{name}.containerfile", image, context, f"--build-arg=BASE={base}")
    return image


def pip_options() -> list[str]:
    """Mounts and variables with which pip in a build finds what it finds here."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    folders = subprocess.run(command, capture_output=True, text=True).stdout.split()
    mounts = [path for path in (*PIP_FILES, *folders) if Path(path).exists()]
    variables = [f"--env={name}={value}" for name, value in os.environ.items() if name.startswith("PIP_")]
    return [*(f"--volume={path}:{path}:ro" for path in mounts), *variables]
