"""Verdicts and what they rest on: findings, reports, thresholds, golden answers, and the gates that read them."""
