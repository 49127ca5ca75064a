"""Names and layouts of a hypernetwork's tensors in official checkpoints.

In: a `GHNConfig`. Out: for each of our parameters, the official tensor that holds the same numbers,
collected from the descriptions that the modules provide.
"""

from __future__ import annotations

from typing import Any

from ghn_jax.configuration.variants import VariantConfig, Variants
from ghn_jax.graphs.primitives import PRIMITIVES
from ghn_jax.hypernetworks import GHNConfig, Hypernetwork, shape_vocabulary
from ghn_jax.hypernetworks.decoders import DECODERS
from ghn_jax.hypernetworks.message_passing import MESSAGE_PASSING
from ghn_jax.hypernetworks.official_tensors import TensorLayout, linear_tensors, same


def tensor_layouts(config: GHNConfig) -> dict[str, TensorLayout]:
    """Describe the official tensor of every parameter.

    Args:
        config: the hypernetwork's config.

    Returns:
        The layout for the path, joined with "/", of each of our parameters.

    Raises:
        ValueError: if the original has no such message passing or decoder.
    """
    size, channels = config.hidden_size, max(config.max_shape[:2])
    vocabulary = shape_vocabulary(config.num_classes, config.max_shape[2])
    num_channels, num_spatial = len(vocabulary.channels) + 1, len(vocabulary.spatial) + 1
    layouts = {
        "embedding/primitive": same("embed.weight", len(PRIMITIVES), size),
        "embedding/channel": same("shape_enc.embed_channel.weight", num_channels, size // 4),
        "embedding/spatial": same("shape_enc.embed_spatial.weight", num_spatial, size // 4),
    }
    model = Hypernetwork(config)
    passing = _check_official(MESSAGE_PASSING, config.message_passing, model.create_passing())
    layouts |= _under(model.passing_scope, passing.official_tensors(size))
    if config.layer_norm:
        layouts["norm/scale"] = same("ln.weight", size)
        layouts["norm/bias"] = same("ln.bias", size)
    decoder = _check_official(DECODERS, config.decoder, model.create_decoders()["kernels"])
    layouts |= _under("kernels", decoder.official_tensors())
    layouts |= linear_tensors("vectors/mlp/layer_1/", "decoder_1d.fc.0", size, 2 * size)
    layouts |= linear_tensors("vectors/mlp/layer_2/", "decoder_1d.fc.2", 2 * size, 2 * channels)
    layouts |= linear_tensors("vectors/classifier/", "bias_class.1", channels, config.num_classes)
    return layouts


def official_name(variants: Variants, config: VariantConfig) -> str:
    """Return the original's name for a variant; ValueError if it has no such variant.

    Args:
        variants: the variants of a part.
        config: the config of one of them.

    Returns:
        The name.
    """
    name: str = _check_official(variants, config, variants[config.name]).official_name
    return name


def _check_official(variants: Variants, config: VariantConfig, module: Any) -> Any:
    """Return a module or class if official checkpoints support it; else raise ValueError."""
    if not hasattr(module, "official_tensors"):
        known = [name for name in variants if hasattr(variants[name], "official_tensors")]
        raise ValueError(
            f"{variants.part} is {config.name!r}, which official checkpoints do not know, expected"
            f" {' or '.join(known)}"
        )
    return module


def _under(scope: str, layouts: dict[str, TensorLayout]) -> dict[str, TensorLayout]:
    return {f"{scope}/{path}": layout for path, layout in layouts.items()}
