"""Check that the version, the tags and the changelog agree (`make release-check`); print each problem."""

from __future__ import annotations

import sys

import registry
from tests import releases
from tests.import_table import ROOT

if __name__ == "__main__":
    problems = releases.problems_of(ROOT, registry.__version__)
    print("\n".join(problems) or f"{registry.__version__}: version, tags and changelog agree")
    sys.exit(bool(problems))
