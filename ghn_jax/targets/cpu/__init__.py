"""Operations spelled as XLA's CPU backend runs them fast, with gradients of their own."""
