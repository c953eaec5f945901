"""Sign-in, tokens, namespaces and their roles, quotas, reserved names, trusted publishers."""
