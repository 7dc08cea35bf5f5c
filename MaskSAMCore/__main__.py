"""`masksam`, and `python -m MaskSAMCore`: one program for all commands."""

from __future__ import annotations
