"""Operations spelled such that XLA's CPU backend runs them fast.

Each comes in two forms: plain, composed of JAX operations and therefore open to every
transformation, and with an adjoint, a handwritten gradient that is faster still but is the only
derivative it has.
"""
