"""How the tests are shared out to processes and tiers.

- A file is one group, so its fixtures are made once. Files that need the same slow thing (torch, model processes,
  the S3 store) are one group together.
- Groups that take longest are handed out first, so that no process is left alone with one at the end.
- `make test` leaves out the tests marked `faults`, `deep`, `chance` and `database`. `make sample` runs one of each kind
  of these.
- What is `deep` stands here, in one list: it guards a part, not the way from a push to a pull.
- A test that takes either database runs on one of them in `make test`, half of the tests on each. Where the databases
  differ (`BOTH_DATABASES`), `make deep` runs it on the other one, and `make test-databases` runs all others there.

Example
    pytest_plugins = ["tests.order"]
"""

from __future__ import annotations

import gc
import zlib
from pathlib import Path
from typing import Any

import pytest

TOGETHER = {
    "worker": (
        "tests/worker/", "tests/training/", "tests/truth/", "tests/flows/test_smoke_test_flow.py",
        "tests/flows/test_merge_flow.py", "tests/cli/test_bases.py", "tests/cli/test_merge.py",
    ),
    "libraries": ("tests/facts/", "tests/engines/", "tests/merge/", "tests/proof/"),
    "s3": ("tests/server/test_s3_", "tests/contract/test_blob_store.py", "tests/hub/"),
}  # fmt: skip
FIRST = (
    "worker", "libraries", "tests/light/", "s3", "tests/cli/", "tests/flows/", "tests/server/", "tests/contract/",
    "tests/bad_inputs/",
)  # fmt: skip
"""Longest first. What is not named comes after them."""

DEEP = (
    "tests/light/", "tests/merge/", "tests/flows/test_merge_flow.py", "tests/cli/test_merge.py",
    "tests/hub/test_api.py", "tests/hub/test_newest_client.py", "tests/hub/test_older_clients.py",
    "tests/hub/test_pushing_clients.py", "tests/hub/test_relay.py",
    "tests/worker/test_good_and_bad_adapters.py", "tests/worker/test_image_smoke.py",
    "tests/worker/test_conversions.py", "tests/worker/test_image_conversions.py",
    "tests/worker/test_fingerprints.py", "tests/cli/test_bases.py",
    "tests/serving/test_export.py", "tests/serving/test_random_events.py",
    "tests/access/test_canaries.py", "tests/access/test_isolation.py",
    "tests/worker/test_structure.py",
    "tests/server/test_fsck.py", "tests/server/test_s3_maintenance.py",
    "tests/flows/test_restore.py", "tests/flows/test_demo.py", "tests/engines/test_fixtures.py",
    "tests/worker/test_devices.py", "tests/proof/test_diffusers.py",
    "tests/worker/test_campaign.py", "tests/worker/test_library.py", "tests/openapi/test_generated_client.py",
    "tests/client/test_bulk.py::test_two_hundred", "tests/flows/test_nginx.py", "tests/truth/",
    "tests/training/test_callback.py", "tests/test_page_commands.py::test_a_reader_of_the_team_page",
    "tests/cli/test_ci_publish.py::test_the_action", "tests/worker/test_unwritten_memory.py",
    "tests/facts/test_diffusers_names.py", "tests/worker/test_dialogue.py::test_a_template_that_never_ends",
    "tests/worker/test_program.py::test_no_program_imports", "tests/worker/test_loop.py::test_weights_that",
    "tests/worker/test_loop.py::test_a_model_process",
    "tests/worker/test_loop.py::test_a_folder_whose_weights", "tests/worker/test_smoke.py::test_a_base_of_four_bits",
    "tests/worker/test_base_kinds.py",
    "tests/worker/test_model_process.py::test_a_configuration_that_works", "tests/server/test_store_calls.py",
    "tests/server/test_processes.py::test_one_of_two_first", "tests/cli/test_serve.py::test_a_bucket_that_does_not",
    "tests/cli/test_other_systems.py", "tests/pages/test_growth.py", "tests/engines/test_recorded_models.py",
)  # fmt: skip
"""What `make deep` runs, and `make test` does not: half a minute and more of imports or of models."""

CHANCE = ("tests/access/test_model.py", "tests/access/test_documented.py")
"""What `make model` runs, and nothing else does: thousands of random steps. Each test is a group of its own."""

SAMPLE = (
    "tests/faults/test_kill.py::test_a_push_survives_a_kill", "tests/faults/test_kill.py::test_garbage_collection",
    "tests/faults/test_store_faults.py::test_a_push_in_parts",
    "tests/faults/test_races.py::test_64_clients_with_different",
    "tests/ha/test_replicas.py::test_a_killed_replica", "tests/web/test_browser.py::test_a_day_of_a_merchant",
    "tests/light/test_light_install.py::test_the_bare_install", "tests/access/test_model.py",
    "tests/light/test_light_install.py::test_the_command_helps",
    "tests/hub/test_newest_client.py::test_the_newest_client_reads",
    "tests/flows/test_restore.py::test_a_reindex_restores", "tests/flows/test_merge_flow.py::test_a_merge_is_a_version",
)  # fmt: skip
"""What `make sample` runs of the tiers that `make test` leaves out: the first case of each of these."""

BOTH_DATABASES = (
    "tests/contract/", "tests/interleavings/", "tests/flows/", "tests/server/test_clock.py",
    "tests/server/test_process_locks.py", "tests/server/test_many_values.py", "tests/server/test_search.py",
    "tests/server/test_usage.py", "tests/server/test_fsck.py", "tests/server/test_request_statements.py",
    "tests/server/test_desired_state.py", "tests/server/test_push.py", "tests/access/test_at_once.py",
    "tests/audit/test_log.py", "tests/audit/test_feed.py",
)  # fmt: skip
"""Where SQLite and PostgreSQL differ: locks, clocks, queues, search, statements, transactions."""

DATABASES = ("sqlite", "postgres")


def group_of(nodeid: str) -> str:
    """The group of a test: a named one, or its file; of chance, the test itself."""
    path = nodeid.split("::", 1)[0]
    if path in CHANCE:
        return nodeid
    return next((name for name, starts in TOGETHER.items() if path.startswith(starts)), path)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whether a folder or file is left out as a whole: what it imports, torch for example, takes long."""
    chosen: str = config.option.markexpr
    left_out = [("not deep", DEEP), ("not chance", CHANCE), ("not faults", ("tests/faults/",))]
    names = [name for words, starts in left_out if words in chosen for name in starts if "::" not in name]
    path = collection_path.relative_to(config.rootpath).as_posix() + "/" * collection_path.is_dir()
    return path.startswith(tuple(names)) or None


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        other = _is_the_other_database(item)
        if other and not item.nodeid.startswith(BOTH_DATABASES):
            item.add_marker("database")
        elif other or item.nodeid.startswith(DEEP):
            item.add_marker("deep")
        if item.nodeid.startswith(CHANCE):
            item.add_marker("chance")

    sampled: set[str] = set()
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function.startswith(SAMPLE) and function not in sampled:
            sampled.add(function)
            item.add_marker("sample")

    def turn(item: pytest.Item) -> int:
        own = group_of(item.nodeid)
        return next((position for position, start in enumerate(FIRST) if own.startswith(start)), len(FIRST))

    items.sort(key=turn)  # stable: within a group nothing changes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


def _is_the_other_database(item: pytest.Item) -> bool:
    kind = getattr(getattr(item, "callspec", None), "params", {}).get("database_kind")
    turn = DATABASES[zlib.crc32(item.nodeid.partition("[")[0].encode()) % len(DATABASES)]
    return kind in DATABASES and kind != turn


def pytest_collection_finish() -> None:
    """Modules and tests live to the end: the garbage collector need not walk over them, millions, again and again."""
    gc.collect()
    gc.freeze()
