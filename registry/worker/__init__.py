"""What runs on a machine that has a base's weights: a client that claims jobs and tries adapters (extra `worker`)."""
