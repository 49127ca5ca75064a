"""Target networks: an architecture becomes a plan of blocks, the plan a Flax network."""
