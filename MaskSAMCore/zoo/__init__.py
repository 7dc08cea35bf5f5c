"""Models and base weights on this computer, and what they cost."""
