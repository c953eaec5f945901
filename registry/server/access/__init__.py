"""Who may do what, where: signing in, namespaces and roles, names that are taken, limits, trusted publishers, removal.

Invariants
- What gives or takes a right says so in `state`, in its own transaction: no replica goes on with what was.
- A refusal is the same whether a thing is absent or only somebody else's.

Example
    >>> from registry.server.access import namespaces
    >>> namespaces.grant(session, actor, "acme", "alice@example.org", Role.PUSHER)
"""
