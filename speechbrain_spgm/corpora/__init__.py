"""Making mixtures from corpora of speech and noise."""
