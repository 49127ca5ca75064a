"""Target networks: architectures are lowered to plans of blocks, and plans become Flax networks."""
