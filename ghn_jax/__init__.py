"""Predict the parameters of neural networks that were never trained, in JAX."""

__version__ = "0.1.0"
