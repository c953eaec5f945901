"""What a version is: its manifest, its files, where it came from, and how long it stays."""
