"""Configuration: its schema, checks, JSON form, presets and recipes; no torch."""
