"""What all checks of a version come to, in a few words: the same ones on every page."""

from collections.abc import Mapping
from dataclasses import dataclass

from registry.evaluation.verdicts import Check, Outcome


@dataclass(frozen=True, slots=True)
class Conclusion:
    """`text` is for people; `outcome` is the worst that counts."""

    text: str
    outcome: Outcome


def conclude(outcomes: Mapping[str, str], *, is_yanked: bool = False, is_quarantined: bool = False) -> Conclusion:
    """Return the conclusion from label of a check → its outcome. No check counts for a version that is withdrawn.

    >>> conclude({"compat": "pass", "smoke": "pass"}).text, conclude({"compat": "pass"}).text
    ('Ready', 'Not smoke-tested')
    >>> conclude({"compat": "warn", "smoke": "fail"}).text
    'Failed: smoke'
    """
    if is_quarantined:
        return Conclusion("In quarantine", Outcome.FAIL)
    if is_yanked:
        return Conclusion("Yanked", Outcome.WARN)
    labels: dict[str, list[str]] = {}
    for label, outcome in outcomes.items():
        labels.setdefault(outcome, []).append(label.removeprefix("engine ").partition(",")[0].replace("==", " "))
    if failed := labels.get(Outcome.FAIL):
        return Conclusion(f"Failed: {', '.join(failed)}", Outcome.FAIL)
    if undecided := labels.get(Outcome.UNKNOWN):
        return Conclusion(f"Undecided: {', '.join(undecided)}", Outcome.UNKNOWN)
    if Check.SMOKE not in outcomes:
        return Conclusion("Not smoke-tested", Outcome.UNKNOWN)
    if warned := labels.get(Outcome.WARN):
        count = f"{len(warned)} warning{'s' if len(warned) > 1 else ''}"
        return Conclusion(f"{count}: {', '.join(warned)}", Outcome.WARN)
    return Conclusion("Ready", Outcome.PASS)
