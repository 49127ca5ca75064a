"""Networks that nobody here wrote, from the package registry: `equimo` (Equinox), `fabrique` (NNX).

Haiku's own ResNet is traced in `test_frontends.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabrique.models.bert import modeling as bert
from fabrique.models.llama import modeling as llama
from flax import nnx

import ghn_jax
from ghn_jax.graphs import PRIMITIVES

try:
    from equimo.vision import models as equimo_models
except ImportError:  # before its version 2, the newest for Python 3.11
    from equimo import models as equimo_models

IMAGES = jax.ShapeDtypeStruct((2, 3, 32, 32), jnp.float32)  # Equinox: channels first
TOKENS = jax.ShapeDtypeStruct((2, 16), jnp.int32)


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Both packages mix dtypes.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


def predict(network, inputs, **arguments):
    return ghn_jax.load("digits").predict(network, inputs, **arguments)


def count(prediction):
    names = [PRIMITIVES[index] for index in prediction.graph.primitive]
    return {name: names.count(name) for name in set(names)}


def num_elements(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if hasattr(leaf, "size"))


@pytest.mark.filterwarnings("ignore")
def test_equimos_convnext():
    network = equimo_models.ConvNeXt(
        3, depths=[1, 1, 2, 1], dims=[8, 16, 32, 64], num_classes=10, key=jax.random.key(0)
    )
    prediction = predict(network, IMAGES, strict=True, inference=True)
    # Stem, three downsamplings, a depthwise and two 1x1 convolutions per block, the head.
    kernels = [t for t in prediction.graph.tensors if t.role.endswith(("kernel", "depthwise"))]
    assert len(kernels) == 4 + 3 * 5 + 1
    assert count(prediction)["sum"] == 5  # residual connections
    assert prediction.num_parameters == sum(
        leaf.size for leaf in jax.tree.leaves(network) if hasattr(leaf, "size")
    )
    zeros = np.zeros(IMAGES.shape, np.float32)
    logits = jax.vmap(functools.partial(prediction.network, inference=True))(zeros)
    assert logits.shape == (2, 10) and np.isfinite(logits).all()


@pytest.mark.filterwarnings("ignore")
def test_equimos_vision_transformer():
    network = equimo_models.VisionTransformer(
        32, 3, 32, 8, [4], [2], num_classes=10, key=jax.random.key(0)
    )
    prediction = predict(network, IMAGES, strict=True, inference=True)
    assert count(prediction)["msa"] == 2
    assert count(prediction)["sum"] == 2 * 2 + 1  # residual connections, and the positions
    assert count(prediction)["pos_enc"] == 3  # class token, four registers, positions
    assert count(prediction)["concat"] == 2  # both kinds of tokens before the patches
    (classifier,) = (t for t in prediction.graph.tensors if t.role == "classifier_kernel")
    assert classifier.shape == (32, 10)


@pytest.mark.filterwarnings("ignore")
def test_fabriques_llama():
    """Grouped-query attention with rotary positions, RMS norm, gated linear units."""

    # Its lists of layers are older than NNX's rule that these are `nnx.List`.
    class Llama(llama.Transformer, pytree=False):
        pass

    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_hidden_size": 64}
    config = llama.ModelArgs(**sizes, vocab_size=100, max_seq_len=32, use_cache=False)
    network = Llama(config, nnx.Rngs(0))
    prediction = predict(network, TOKENS, start_pos=0, strict=True)
    assert count(prediction)["msa"] == 2
    # Embedding, 7 kernels and 2 norms in each layer, a norm, the output.
    assert len(prediction.report.predicted) == 1 + 2 * 9 + 1 + 1
    assert prediction.num_parameters == num_elements(nnx.state(network, nnx.Param))
    logits = prediction.network(np.zeros(TOKENS.shape, np.int32), start_pos=0)
    assert logits.shape == (2, 16, 100) and np.isfinite(logits).all()


@pytest.mark.filterwarnings("ignore")
def test_fabriques_bert_says_what_it_keeps():

    class Bert(bert.Transformer, pytree=False):
        pass

    config = bert.ModelArgs(vocab_size=100, dim=32, n_layers=2, n_heads=4, max_seq_len=32)
    prediction = predict(Bert(config, nnx.Rngs(0)), TOKENS)
    assert count(prediction)["msa"] == 2
    kept = prediction.report.kept
    assert kept["pooler/w/kernel"] == "the output does not depend on it"
    predicted = set(prediction.report.predicted)
    assert "embeddings/token_embeddings/embedding" in predicted | set(kept)
    assert len(predicted) == 35
