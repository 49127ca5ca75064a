"""From predicted parameters to a trained network."""
