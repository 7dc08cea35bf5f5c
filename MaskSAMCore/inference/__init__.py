"""Inference: sliding windows and the predictor."""
