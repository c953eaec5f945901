"""Read and write the tensors and the configuration of an adapter's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from registry.files import CONFIG, WEIGHTS


def load(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, sorted by name."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def save(out: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write a PEFT adapter's folder."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / WEIGHTS, metadata={"format": "pt"})
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
