"""Architectures and graphs in the files of DeepNets-1M, read and written."""
