"""Evaluation: metrics, hold-out evaluation, and simulated users."""
