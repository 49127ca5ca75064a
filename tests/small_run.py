"""Sections of a config whose runs compile in seconds, for tests of training."""

SECTIONS = {
    "data": {"name": "digits", "batch_size": 8},
    "space": {
        "widths": (8,),
        "fc_sizes": (16,),
        "allowed_operations": ("skip_connect", "max_pool_3x3", "conv_1x1"),
        "num_cells": (4, 4),
        "max_steps": 1,
        "global_pool_only": True,
        "image_size": 8,
    },
    "ghn": {"hidden_size": 8, "max_shape": (8, 8, 7, 7)},
}
