"""Commands on the machine of a server: run it in one or several processes, its settings, the key of its audit log."""
