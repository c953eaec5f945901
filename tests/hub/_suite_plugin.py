"""A plugin for huggingface_hub's own tests: sends them to a server of this registry, and leaves tests out.

Loaded by their pytest before their modules, so that these import the constants as they are set here.
"""

import importlib
import json
import os

import pytest

ORDER = json.loads(os.environ["SUITE_ORDER"])
CONSTANTS = importlib.import_module("tests.testing_constants")
for name, value in ORDER["constants"].items():
    setattr(CONSTANTS, name, value)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: "list[pytest.Item]") -> None:
    """Leave out the tests whose id has one of these parts."""
    selected = [item for item in items if not any(part in item.nodeid for part in ORDER["excluded"])]
    config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    unused = [part for part in ORDER["excluded"] if not any(part in item.nodeid for item in items)]
    assert not unused, f"no test has these parts in its id: {unused}"
    items[:] = selected
