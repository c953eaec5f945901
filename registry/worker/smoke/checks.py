"""The checks of a smoke test in order, once for all three ways to run it: isolated, shared, image."""

from collections.abc import Callable
from dataclasses import dataclass

from registry.worker.smoke.result import LibraryFailed, SmokeResult, library_message, machine_fault


@dataclass(frozen=True, slots=True)
class SmokeCheck:
    """One check. It runs if `needs`, an earlier check, passed; empty: always."""

    name: str
    needs: str
    about: str


CHECKS = (
    SmokeCheck("task", "", "this worker can run the adapter's task on this base"),
    SmokeCheck("structure", "task", "PEFT reads the configuration and expects the file's tensors, and no other"),
    SmokeCheck("weights", "structure", "every number is finite; the norm of each module's update beside its weight's"),
    SmokeCheck("baseline", "weights", "the bare base answers the probes"),
    SmokeCheck("load", "baseline", "PEFT or diffusers loads the adapter"),
    SmokeCheck("forward", "load", "the outputs are finite, differ from the base's, and stay within the thresholds"),
    SmokeCheck("dialogue", "forward", "its chat template renders, its tokens are in range"),
    SmokeCheck("golden", "forward", "expected answers become more likely"),
    SmokeCheck("swap", "forward", "in a mixed batch, the base and the previous adapter answer as before"),
    SmokeCheck("base", "load", "after unloading, the base's numbers are bit-equal to before"),
)


class SmokeTest:
    """The smoke test of one adapter: a subclass has a method `check_NAME` for each check that applies to it.

    The method returns whether the checks that need it may run; what is wrong with the adapter is a finding of `result`.
    `notes_exceptions`: so is what a library cannot do.
    """

    notes_exceptions = True

    def __init__(self, result: SmokeResult) -> None:
        self.result = result

    def run(self) -> SmokeResult:
        """Run the checks in order."""
        passed = {""}
        for check in CHECKS:
            method = getattr(self, f"check_{check.name}", None)
            if check.needs in passed and (method is None or self._holds(check, method)):
                passed.add(check.name)
        return self.result

    def _holds(self, check: SmokeCheck, method: Callable[[], bool]) -> bool:
        try:
            return method()
        except LibraryFailed as e:
            self.result.findings.append(e.finding)
            return False
        except Exception as e:
            if not self.notes_exceptions or machine_fault(e) or isinstance(e, OSError):
                raise
            message = f"this worker's libraries cannot check that {check.about}: {library_message(e)}"
            self.result.note("unknown", "smoke.task_unsupported", check.name, message)
            return False
