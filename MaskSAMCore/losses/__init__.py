"""Losses: the set loss and its matching, segmentation losses, distillation."""
