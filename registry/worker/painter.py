"""The process that keeps one image model: as the keeper of a language model, with a child of its own for each adapter.

Invariants
- Those of registry.worker.keeper. It is a program of its own, because only it needs diffusers (extra `images`).

Example
    $ python -m registry.worker.painter sd-tiny models/sd-tiny cpu ""
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from registry.worker import keeper, pictures
from registry.worker.child import Alone, Loader, Message, Say, telling, thresholds_of
from registry.worker.pictures import Pipeline


@dataclass(frozen=True, slots=True)
class PictureLoader(Loader):
    def load(self) -> Any:
        return Pipeline.load(self.folder, self.name, device=self.device, dtype=self.dtype)


class Painted(Alone):
    """One image adapter on its pipeline."""

    def _answer(self, request: Message, say: Say) -> Message:
        seen = pictures.examine(self.base(say), Path(request["folder"]), thresholds_of(request), say=telling(say))
        seen.measurements.setdefault("way", "alone")
        return {"seen": seen.to_message()}


if __name__ == "__main__":
    sys.exit(
        keeper.main(sys.argv[1:], loader_of=PictureLoader, alone=Painted, versions={"diffusers": diffusers.__version__})
    )
