"""What runs on a serving node: adapters brought here, whole and true, and engines that serve what the roster says."""
