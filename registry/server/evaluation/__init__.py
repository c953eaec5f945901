"""What the server evaluates itself: engine compatibility, and the numbers in weights."""
