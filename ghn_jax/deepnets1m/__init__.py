"""Read and write architectures and graphs in DeepNets-1M files."""
