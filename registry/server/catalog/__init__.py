"""Reads: versions, bases, lineage, history and files, as the API shows them; and refs."""
