"""Signed links to a blob store in a folder, and the threads of this server that answer them."""
