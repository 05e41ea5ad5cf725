"""Tensors in, tensors out: the parts of SPGM, without files or hyperparameters."""
