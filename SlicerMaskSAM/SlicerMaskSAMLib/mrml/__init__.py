"""Access to MRML: volumes, segments, prompts and views as plain values."""
