"""Training: the loop, schedules, checkpoints and reports."""
