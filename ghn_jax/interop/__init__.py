"""Files of the original PyTorch implementation."""
