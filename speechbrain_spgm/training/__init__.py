"""Training and testing: the Brain, its loss, learning rate, checkpoints and scores."""
