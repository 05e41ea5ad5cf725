"""The page: a recording in a browser becomes voices, pictures and files."""

from speechbrain_spgm.web.page import build_page, serve

__all__ = ["build_page", "serve"]
