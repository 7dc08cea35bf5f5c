"""Plain values and algorithms of the module, without MRML and without Qt."""
