"""Between the MRML scene and numpy."""
