"""Plain values and algorithms of the module: no MRML, no Qt."""
