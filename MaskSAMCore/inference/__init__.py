"""Inference: automatic segmentation with sliding windows, and interactive sessions."""
