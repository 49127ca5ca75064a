"""Read and write files of the original PyTorch implementation, and compare numbers with it."""
