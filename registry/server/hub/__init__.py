"""What the Hub API reads: repositories, and files with git ids."""
