"""The container tier (`make test-images`): images are built once, and layers stay in .cache/images between runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.deploy.containers import Podman, build_base, build_service, missing, pip_options
from tests.import_table import ROOT

REASON = "" if os.environ.get("IMAGE_TESTS") else "the container tier runs with `make test-images`"
REASON = REASON or missing()
TARGETS = ("server", "agent", "worker")
SERVICES = {"POSTGRES_IMAGE": "database", "SEAWEEDFS_IMAGE": "bucket", "CADDY_IMAGE": "proxy"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if REASON and "tests/deploy/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def podman() -> Podman:
    return Podman(Path(os.environ.get("TEST_IMAGES_FOLDER", ROOT / ".cache/images")))


@pytest.fixture(scope="session")
def images(podman: Podman) -> dict[str, str]:
    """Our images by target, as deploy/compose.yaml names them."""
    base = build_base(podman)
    built = {}
    for target in TARGETS:
        built[target] = f"localhost/adapter-registry/{target}"
        options = [f"--target={target}", f"--build-arg=BASE={base}", "--build-arg=TORCH=torch", *pip_options()]
        podman.build(ROOT / "deploy/Containerfile", built[target], ROOT, *options)
    return built


@pytest.fixture(scope="session")
def services(podman: Podman) -> dict[str, str]:
    """What stands for the official images of the services, by the variables of deploy/compose.yaml."""
    base = build_base(podman)
    return {variable: build_service(podman, name, base) for variable, name in SERVICES.items()}
