"""The command `adapter`. Its door is cli/main.py; every other room here is opened when its command is typed."""
