"""The model process of an image model: as `host`, with an isolated child for each adapter.

It is a program of its own because only it needs diffusers (extra `images`).

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
from registry.worker.model_process.child import IsolatedRun, Loader, Message, Say, progress_to, thresholds_of
from registry.worker.smoke import image


@dataclass(frozen=True, slots=True)
class ImageLoader(Loader):
    """Load a diffusers pipeline."""

    def load(self) -> Any:
        return Pipeline.load(self.folder, self.name, device=self.device, dtype=self.dtype)


class IsolatedImageRun(IsolatedRun):
    """Test one image adapter on its pipeline."""

    def _answer(self, request: Message, say: Say) -> Message:
        result = image.examine(self.base(say), Path(request["folder"]), thresholds_of(request), say=progress_to(say))
        result.measurements.setdefault("mode", "isolated")
        return {"result": result.to_message()}


if __name__ == "__main__":
    sys.exit(
        host.main(
            sys.argv[1:],
            loader_of=ImageLoader,
            isolated=IsolatedImageRun,
            versions={"diffusers": diffusers.__version__},
        )
    )
