"""The largest numbers that a file or a config may ask for, in one place.

A number in a file of a kilobyte, or on the command line, can ask for more memory or time than any
machine has. Each limit stands well above what is published or was ever trained, and is checked
before anything is allocated.
"""

NUM_CLASSES = 1_000_000
NUM_CHANNELS = 1_024
IMAGE_SIZE = 16_384
HIDDEN_SIZE = 8_192
NUM_LAYERS = 1_000
"""Of message passing: its layers, rounds and heads."""
TILE_SIZE = 8_192
KERNEL_SIZE = 255
NUM_CELLS = 1_000
NUM_STEPS = 100
NUM_FC_LAYERS = 100
WIDTH = 65_536
STAGE_SIZE = 1_000
NUM_NODES = 10_000

BATCH_SIZE = 1_000_000
META_BATCH_SIZE = 65_536
NUM_PROCESSES = 1_024
"""Of workers, threads and devices of one process."""
COUNT = 2**31 - 1
"""Of steps, epochs, architectures and images."""
SEED = 2**32 - 1
"""`jax.random.key` drops higher bits: 2**32 would give the same numbers as 0."""
