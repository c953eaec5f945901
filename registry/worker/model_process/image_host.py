"""The model process of an image model: as `host`, with an isolated child for each adapter. It needs diffusers."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from registry.worker.model.image import Pipeline
from registry.worker.model_process import host
from registry.worker.model_process.child import IsolatedRun, Loader, Message, Send, progress_to, thresholds_of
from registry.worker.smoke.image import ImageTest
from registry.worker.smoke.result import SmokeResult


@dataclass(frozen=True, slots=True)
class ImageLoader(Loader):
    """Load a diffusers pipeline."""

    def load(self) -> Any:
        """Load the pipeline."""
        return Pipeline.load(self.folder, self.name, device=self.device, dtype=self.dtype)


class IsolatedImageRun(IsolatedRun):
    """Test one image adapter on its pipeline."""

    def examine(self, folder: Path, request: Message, send: Send) -> SmokeResult:
        """Run the smoke test."""
        return ImageTest(self.base(send), folder, thresholds_of(request), say=progress_to(send)).run()


if __name__ == "__main__":
    versions = {"diffusers": diffusers.__version__}
    sys.exit(host.main(sys.argv[1:], loader_of=ImageLoader, isolated=IsolatedImageRun, versions=versions))
