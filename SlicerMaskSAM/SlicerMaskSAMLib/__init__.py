"""The Slicer side of SlicerMaskSAM. Torch runs in the engine's process only."""
