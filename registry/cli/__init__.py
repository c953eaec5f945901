"""The command line in a checkout: the files are in `cli/` beside `registry/`. A wheel has them here (docs/adr/0023)."""

import os

__path__ = [os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "cli")]
