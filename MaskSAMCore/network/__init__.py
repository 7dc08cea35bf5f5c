"""The network: tensors and configuration only; no files, no images, no training."""
