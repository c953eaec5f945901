"""What every program of this folder does around its conversion: read the order, answer with one line of JSON.

Invariants
- The answer is the last line on standard output: `{"report": …}` or `{"problem": …}`; libraries may print before it.
- An error of ours travels with its code; any other is a trace on standard error and a failed exit.

Example
    if __name__ == "__main__":
        main(convert)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from registry.errors import RegistryError
from registry.manifest import CONFIG, WEIGHTS
from registry.merging.conversions import Converted
from registry.worker.conversions.request import Order
from registry.worker.sandbox import confine, entry

Convert = Callable[[Order], Converted]


def main(convert: Convert) -> None:
    """One order from standard input, done, without network where Linux allows that."""
    entry.begin()
    confine.die_with_the_parent()
    confine.cut_network()
    order = Order.model_validate_json(sys.stdin.buffer.read())
    try:
        answer: dict[str, Any] = {"report": convert(order).model_dump(mode="json")}
    except RegistryError as e:
        answer = {"problem": e.to_problem()}
    print(json.dumps(answer), flush=True)  # noqa: T201 - this is the answer


def load(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in the order of their names."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def save(out: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """A PEFT adapter's folder."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / WEIGHTS, metadata={"format": "pt"})
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
