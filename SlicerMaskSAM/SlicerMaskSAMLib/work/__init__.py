"""The module's work without Qt: segmenting, refining, output and teaching."""
