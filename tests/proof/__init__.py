"""Proof against the engines themselves: vLLM over HTTP, and the code of published wheels. Optional: see `make help`."""
