"""What runs on a serving box: adapters brought here, whole and true, and engines that serve what the roster says."""
