"""What the Hub API reads: repositories, files with git ids, and the relay to another Hub."""
