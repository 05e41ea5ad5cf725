"""Recordings of any length: whole while memory lasts, else in windows."""

from speechbrain_spgm.inference.long.files import separate_to_files, separate_to_tensor
from speechbrain_spgm.inference.long.memory import estimate_bytes, parse_bytes

__all__ = ["estimate_bytes", "parse_bytes", "separate_to_files", "separate_to_tensor"]
