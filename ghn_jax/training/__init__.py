"""Training a GHN: configuration, optimizers, checkpoints, metrics and the loop that uses them."""
