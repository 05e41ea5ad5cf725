"""What a model is on disk and on the Hub: formats, sources, safe loading."""
