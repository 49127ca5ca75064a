"""Operations spelled as XLA's CPU backend runs them fast.

Each comes plain, as compositions that every transformation of JAX passes through, or with an
adjoint: a gradient written by hand, faster still, and the only derivative there is of it.
"""
