"""The command `adapter`: `main.py` has the table of commands; each noun has a file."""
