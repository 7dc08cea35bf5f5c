"""Preprocessing: from the grid of a scan to that of the network, and back."""
