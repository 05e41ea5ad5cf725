"""Recordings that come in overlapping windows: layout, order of voices, seams."""
