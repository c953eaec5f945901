"""The smoke test: one adapter on a loaded base, cheapest checks first (`checks.CHECKS`)."""
