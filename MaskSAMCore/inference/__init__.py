"""Inference: automatic segmentation in sliding windows, and sessions that answer clicks."""
