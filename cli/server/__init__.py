"""Commands on the machine of a server: run it, its settings, the key of its audit log."""
