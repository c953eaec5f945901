"""Device names, and which device this machine offers. No torch here."""

from pathlib import Path

CPU, CUDA = "cpu", "cuda"


def select_device(name: str) -> str:
    """Resolve `auto`: CUDA if this machine has NVIDIA's driver, else CPU. Does not initialize the device."""
    if name != "auto":
        return name
    return CUDA if Path("/dev/nvidiactl").exists() else CPU
