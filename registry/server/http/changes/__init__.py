"""Whether anything was committed since: what was read before can be used, and who waits for a change is woken."""
