"""The Slicer side of SlicerMaskSAM; it never imports torch, which runs in the engine's own process."""
