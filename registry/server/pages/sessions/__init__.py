"""Sessions of browsers: who visits a page, and how a session begins and ends."""
