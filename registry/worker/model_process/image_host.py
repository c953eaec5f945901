"""The process that keeps one image model: as the keeper of a language model, with a child of its own for each adapter.

Invariants
- Those of `model_process.host`. It is a program of its own, because only it needs diffusers (extra `images`).

Example
    $ python -m registry.worker.model_process.image_host sd-tiny models/sd-tiny cpu ""
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from registry.worker.model.image import Pipeline
from registry.worker.model_process import host
from registry.worker.model_process.child import Alone, Loader, Message, Say, telling, thresholds_of
from registry.worker.smoke import image


@dataclass(frozen=True, slots=True)
class PictureLoader(Loader):
    def load(self) -> Any:
        return Pipeline.load(self.folder, self.name, device=self.device, dtype=self.dtype)


class Painted(Alone):
    """One image adapter on its pipeline."""

    def _answer(self, request: Message, say: Say) -> Message:
        result = image.examine(self.base(say), Path(request["folder"]), thresholds_of(request), say=telling(say))
        result.measurements.setdefault("way", "alone")
        return {"seen": result.to_message()}


if __name__ == "__main__":
    sys.exit(
        host.main(sys.argv[1:], loader_of=PictureLoader, alone=Painted, versions={"diffusers": diffusers.__version__})
    )
