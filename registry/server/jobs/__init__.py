"""Jobs: the queue, how they are requested, campaigns of them, and what their results change."""
