"""`main`: what the command `adapter` starts. Ctrl-C ends it in one word while its modules are imported, too."""

import sys

from registry import lazy


def main() -> None:
    """Import the command line and run it."""
    try:
        lazy.load(f"{__package__}.main:main")(prog_name="adapter")
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
