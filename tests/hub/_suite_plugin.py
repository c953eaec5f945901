"""A plugin for huggingface_hub's own tests: sends them to a server of this registry, and leaves tests out.

Loaded by their pytest before their modules, so that these import the constants as they are set here.
"""

import importlib
import json
import os
import re

import pytest

ORDER = json.loads(os.environ["SUITE_ORDER"])
CONSTANTS = importlib.import_module("tests.testing_constants")
for name, value in ORDER["constants"].items():
    setattr(CONSTANTS, name, value)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: "list[pytest.Item]") -> None:
    """Leave out the tests whose id matches one of these patterns; each pattern matches some."""
    matches = {pattern: [item for item in items if re.search(pattern, item.nodeid)] for pattern in ORDER["excluded"]}
    assert all(matches.values()), [pattern for pattern, matching in matches.items() if not matching]
    excluded = {item.nodeid for matching in matches.values() for item in matching}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in excluded])
    items[:] = [item for item in items if item.nodeid not in excluded]
