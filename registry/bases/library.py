"""`LibraryModules`: the modules of a base as an installed library builds them, which a worker reads once.

Names in files differ from those of modules (`language_model.model.…` and `model.language_model.…`), and a name does not
say the class. So they replace what the headers say, until a worker with a newer library reads them again.
"""

import re

from pydantic import Field

from registry.bases import MODULES_LIMIT, BaseSpec, check_modules
from registry.bases.modules import ModuleShape
from registry.model import FrozenModel


class LibraryModules(FrozenModel):
    """What `library` ("transformers 5.24.0") builds from a base's configuration, by the modules' paths.

    `problem`: its own error if it cannot build the base; then there are no modules.
    """

    library: str = Field(pattern=r"^[a-z]{1,40} [0-9A-Za-z.+-]{1,40}$")
    """Library and version, such as `transformers 5.24.0`."""
    modules: dict[str, ModuleShape] = Field(default={}, max_length=MODULES_LIMIT)
    """Path of a module → its kind and sizes."""
    vocab: int = Field(default=0, ge=0)
    """Rows of the token embedding; 0 if unknown."""
    tied: bool = False
    """Whether input and output embedding share their weights."""
    problem: str = Field(default="", max_length=1000)
    """Error of the library if it cannot build the base; then there are no modules."""

    def replaces(self, library: str) -> bool:
        """Whether this is to replace what `library` built: another library, or a newer version. Empty: yes."""
        return is_newer(self.library, library)

    def apply(self, spec: BaseSpec) -> BaseSpec:
        """The spec with these modules. Experts keep the names that they have in the files beside the fused ones.

        `Invalid` (BASE_INVALID) if they are too many together.
        """
        if self.problem:
            return spec.model_copy(update={"library": self.library, "library_problem": self.problem})
        single = {path: module for path, module in spec.modules.items() if ".experts.*." in path}
        return spec.model_copy(
            update={
                "library": self.library, "modules": check_modules(spec.name, self.modules | single),
                "names_known": True, "tied": self.tied, "vocab": self.vocab or spec.vocab,
            }
        )  # fmt: skip


def is_newer(library: str, than: str) -> bool:
    """Whether `library` is another one or a newer version: its numbers are compared, not its suffixes."""
    name, _, version = library.partition(" ")
    other_name, _, other_version = than.partition(" ")
    return name != other_name or _numbers(version) > _numbers(other_version)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", version.partition("+")[0])]
