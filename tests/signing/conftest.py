"""The desk of the command's tests."""

from tests.cli.conftest import desk as desk
