"""The fixture `cli` of the tests of the commands."""

from tests.cli.conftest import cli as cli
