"""Nothing that a user can see or name disappears by accident.

`visible_features.txt` lists what commit f9aefa45 offered. What is removed on purpose stands in `REMOVED` with its
reason until the next tag, whose list then becomes the file.
"""

from tests.import_table import ROOT
from tests.visible_features import features

ONE_WORD = "one word for one thing: docs/reference/cli.md has the new one"

REMOVED: dict[str, str] = {
    **dict.fromkeys(
        (
            "argument adapter base alias",
            "command adapter base alias",
            "option adapter agent --keep-days",
            "option adapter agent --profile",
            "option adapter approve --comment",
            "option adapter audit verify --key",
            "option adapter base alias",
            "option adapter convert --timeout",
            "option adapter convert --to",
            "option adapter export --from",
            "option adapter fsck --from",
            "option adapter lineage --format",
            "option adapter lineage --sign",
            "option adapter merge --timeout",
            "option adapter pull-all --base",
            "option adapter push --sign",
            "option adapter push --timeout",
            "option adapter push-all --timeout",
            "option adapter rollback --to",
            "option adapter sign --key",
            "option adapter smoke-test --timeout",
            "option adapter token create --days",
            "option adapter token rotate --keep-minutes",
            "option adapter verify --key",
            "option adapter verify --save",
            "option adapter worker --answers",
        ),
        ONE_WORD,
    ),
    "argument adapter history NAME": "it is NAME|NAMESPACE now",
    "argument adapter job cancel ID": "it takes several: ID...",
    "route POST /{namespace}/{name}/info/lfs/objects/complete": "large files of Hub clients come through the server",
    "setting REGISTRY_CONNECTIONS_PER_ADDRESS": "a proxy limits addresses; a process limits connections by its files",
    "setting REGISTRY_HUB_UPSTREAM": "a rule of the proxy forwards what is on the Hub (docs/hub.md)",
}
"""Beginning of a line of the list → why it is gone."""


def test_every_visible_feature_is_still_there_or_its_removal_has_a_reason() -> None:
    recorded = set((ROOT / "tests/visible_features.txt").read_text().splitlines())
    missing = sorted(recorded - set(features()))
    assert [line for line in missing if not line.startswith(tuple(REMOVED))] == []


def test_a_recorded_removal_is_real() -> None:
    recorded = (ROOT / "tests/visible_features.txt").read_text().splitlines()
    offered = set(features())
    stale = [start for start in REMOVED if not any(r.startswith(start) and r not in offered for r in recorded)]
    assert stale == []
