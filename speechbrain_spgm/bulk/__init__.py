"""A manifest of recordings in, a folder of voices and a list of them out."""
