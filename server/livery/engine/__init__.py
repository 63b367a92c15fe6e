"""Engines: token ids in, token ids out, behind the seam in `base`."""
