"""Training data: verification, splits, the prepared cache, sampling and augmentation."""
