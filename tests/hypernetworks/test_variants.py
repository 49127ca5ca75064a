"""Message passing and decoders of one's own: by name in configs, handed in from Python, saved."""

import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from plain_composition import one_cell
from random_parameters import draw_parameters

import ghn_jax
from ghn_jax.cli.config_dict import build_config, default_config
from ghn_jax.cli.config_flags import resolve_names
from ghn_jax.configuration.variants import PositiveInt
from ghn_jax.graphs import GraphBatch
from ghn_jax.hypernetworks import GHNConfig, Hypernetwork, ghn2
from ghn_jax.hypernetworks.decoders import DECODERS, ConvDecoder
from ghn_jax.hypernetworks.message_passing import GCN, MESSAGE_PASSING, GatedGNN
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.hypernetworks.tiling import TileKey
from ghn_jax.interop.torch_checkpoints import to_official_config
from ghn_jax.interop.torch_layouts import tensor_layouts
from ghn_jax.targets.graph import build_graph

SIZES = {"hidden_size": 8, "max_shape": (8, 8, 7, 7)}
GRAPH = build_graph(one_cell("conv_1x1", "skip_connect"), 50)


class Neighbors(nn.Module):
    """What nodes hear of those next to them.

    Attributes:
        num_steps: how often they listen.
        weight: of what they hear.
    """

    num_steps: PositiveInt = 1
    weight: float = 0.5

    @nn.compact
    def __call__(self, nodes: jax.Array, batch: GraphBatch) -> jax.Array:
        own = (batch.distance == 1).astype(nodes.dtype)  # (B, N, N)
        for _ in range(self.num_steps):
            nodes = nodes + self.weight * nn.Dense(nodes.shape[-1])(jnp.matmul(own, nodes))
        return nodes


class LowRank(ghn_jax.Decoder):
    """Kernels as products of two matrices, the same on all pixels.

    Attributes:
        rank: of the product.
    """

    rank: PositiveInt = 2

    def setup(self):
        num_out, num_in, _, _ = self.max_shape
        self.left = nn.Dense(num_in * self.rank)
        self.right = nn.Dense(num_out * self.rank)
        self.classes = nn.Dense(num_in * self.num_classes)

    def kernel(self, x, height, width, num_in, num_out):
        left = self.left(x).reshape(len(x), -1, self.rank)
        right = self.right(x).reshape(len(x), self.rank, -1)
        tile = jnp.matmul(left, right)[:, :num_in, :num_out]
        return jnp.broadcast_to(tile[:, None, None], (len(x), height, width, *tile.shape[1:]))

    def classifier_kernel(self, x):
        return self.classes(x).reshape(len(x), -1, self.num_classes)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The two above, for this file only."""
    ghn_jax.register_message_passing("neighbors")(Neighbors)
    ghn_jax.register_decoder("low_rank")(LowRank)
    yield
    del MESSAGE_PASSING._modules["neighbors"], DECODERS._modules["low_rank"]


def predict_both_ways(model):
    """The plain model's parameters, and those from shared programs."""
    variables = draw_parameters(model.init, GRAPH)
    plain = jax.jit(lambda v: model.apply(v, GRAPH))(variables)
    predictor = Predictor(model)
    (shared,) = predictor.predict(variables["params"], predictor.prepare([GRAPH]))
    return variables, plain, shared


@pytest.mark.parametrize(
    "fields",
    [
        {"message_passing": "gcn"},
        {"message_passing": {"name": "gat", "num_heads": 2}},
        {"message_passing": {"name": "gated_gnn", "num_rounds": 2}},
        {"message_passing": {"name": "neighbors", "num_steps": 2}},
        {"decoder": {"name": "low_rank", "rank": 3}},
    ],
    ids=str,
)
def test_a_config_names_a_variant_and_its_fields(fields):
    config = ghn2(**SIZES, **fields)
    model = Hypernetwork(config)
    variables, plain, shared = predict_both_ways(model)
    assert set(variables["params"]) == model.parameter_names()
    for tensor, one, other in zip(GRAPH.tensors, plain, shared, strict=True):
        assert one.shape == tensor.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert GHNConfig(**config.to_dict()) == config == pickle.loads(pickle.dumps(config))


def test_a_handed_in_module_is_the_named_one():
    named = Hypernetwork(ghn2(**SIZES, message_passing={"name": "gcn", "num_layers": 1}))
    given = Hypernetwork(ghn2(**SIZES), message_passing=GCN(num_layers=1))
    variables, plain, _ = predict_both_ways(named)
    for one, other in zip(plain, given.apply(variables, GRAPH), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    named = Hypernetwork(ghn2(**SIZES, decoder="low_rank"))
    given = Hypernetwork(ghn2(**SIZES), decoder=LowRank())
    variables, plain, _ = predict_both_ways(named)
    for one, other in zip(plain, given.apply(variables, GRAPH), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_decoder_of_ones_own_by_hand():
    model = Hypernetwork(ghn2(**SIZES), decoder=LowRank())
    variables, plain, _ = predict_both_ways(model)
    p = variables["params"]["kernels"]
    batch = ghn_jax.hypernetworks.model.make_batch(model.config, [GRAPH])
    nodes = model.apply(variables, batch, method="embed_nodes")[0]
    place = next(i for i, t in enumerate(GRAPH.tensors) if t.role == "kernel")
    tensor, x = GRAPH.tensors[place], nodes[GRAPH.tensors[place].node]
    left = (x @ p["left"]["kernel"] + p["left"]["bias"]).reshape(8, 2)
    right = (x @ p["right"]["kernel"] + p["right"]["bias"]).reshape(2, 8)
    num_in, num_out = tensor.shape[-2:]
    tile = np.tile(left @ right, (-(-num_in // 8), -(-num_out // 8)))[:num_in, :num_out]
    tile = tile[:, :] if num_in >= 8 else tile[:num_in]
    factor = np.sqrt(2 / np.prod(tensor.shape[:-1]))
    expected = np.broadcast_to(factor * tile, tensor.shape)
    np.testing.assert_allclose(plain[place], expected, rtol=1e-4, atol=1e-5)
    key = TileKey("kernel", 3, 3)
    assert LowRank(8, (8, 8, 7, 7), 10).num_products(key) == 8 * 9 * 8 * 8  # a linear layer's
    assert ConvDecoder(8, (8, 8, 7, 7), 10).num_products(key) == 9 * 64 * (32 + 64)


def test_saved_and_loaded_by_name(tmp_path):
    model = Hypernetwork(ghn2(**SIZES, message_passing={"name": "neighbors", "weight": 0.25}))
    variables, plain, _ = predict_both_ways(model)
    ghn_jax.GHN(model, variables["params"]).save(tmp_path)
    ghn = ghn_jax.load(tmp_path)
    assert ghn.config.message_passing == Neighbors.Config(weight=0.25)
    for one, other in zip(plain, ghn.model.apply({"params": ghn.ghn_params}, GRAPH), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_config_files_and_command_lines():
    config = default_config()
    config.ghn.message_passing = "mlp"  # as files did when this was a string
    assert build_config(config).ghn == ghn_jax.mlp()
    config.ghn.message_passing.name = "neighbors"
    config.ghn.message_passing.num_steps = 3
    assert build_config(config).ghn.message_passing == Neighbors.Config(num_steps=3)
    config.ghn.message_passing.num_heads = 2
    expected = r"^config\.ghn\.message_passing\.num_heads \(value 2\) is not a field.*num_steps"
    with pytest.raises(ValueError, match=expected):
        build_config(config)
    raw = ml_collections.ConfigDict({"ghn": {"message_passing": "mlp", "decoder": "mlp"}})
    assert build_config(raw).ghn == ghn_jax.mlp(decoder="mlp")
    arguments = ["x", "--config.ghn.message_passing=mlp", "--config.ghn.decoder.name=mlp"]
    expected = ["--config.ghn.message_passing.name=mlp", "--config.ghn.decoder.name=mlp"]
    assert resolve_names(arguments)[1:] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("gnc", r"^message_passing\.name is 'gnc' \(did you mean 'gcn'\?\), expected one of gat,"),
        ("gnc", "registered by ghn_jax.register_message_passing$"),
        (3, "^message_passing is 3, expected the name of a variant of message passing, or a"),
        ({"num_layers": 3}, "^message_passing is {'num_layers': 3}, expected the name"),
        ({"name": "gcn", "num_layers": 0}, r"^message_passing\.num_layers is 0, expected a pos"),
        ({"name": "gcn", "num_layers": "2"}, r"^message_passing\.num_layers is '2', expected int"),
        ({"name": "mlp", "num_layers": 2}, r"num_layers \(value 2\) is not a field"),
    ],
)
def test_what_is_no_variant_is_named(value, expected):
    with pytest.raises(ValueError, match=expected):
        GHNConfig(message_passing=value)


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="^name is 'gcn', expected another: it is taken by GCN of"):
        ghn_jax.register_message_passing("gcn")(Neighbors)
    assert MESSAGE_PASSING["gcn"] is GCN
    ghn_jax.register_message_passing("neighbors")(Neighbors)  # a cell that runs again

    class Bare(nn.Module):
        size: int

    with pytest.raises(ValueError, match=r"Bare\.size has no default, expected one"):
        ghn_jax.register_message_passing("bare")(Bare)
    assert "bare" not in MESSAGE_PASSING
    with pytest.raises(ValueError, match="^name is '', expected that of a variant of the decoder"):
        ghn_jax.register_decoder("")
    with pytest.raises(ValueError, match="^name is 'gat', expected 'gcn'"):
        GCN.Config(name="gat")


def test_what_official_checkpoints_do_not_have_is_said():
    with pytest.raises(ValueError, match="^message passing is 'gcn', which official checkpoints"):
        to_official_config(ghn2(message_passing="gcn"))
    with pytest.raises(ValueError, match="'low_rank', which .* do not know, expected conv or mlp"):
        tensor_layouts(ghn2(decoder="low_rank"))
    two = GatedGNN.Config(num_rounds=2)
    with pytest.raises(ValueError, match="^message_passing has num_rounds 2 and forward_only Fal"):
        tensor_layouts(ghn2(message_passing=two))
    assert list(DECODERS)[:2] == ["conv", "mlp"]


def test_a_role_that_no_decoder_has_is_named():
    class NoPositions(LowRank):
        kinds = ("kernel", "depthwise", "classifier_kernel")

    model = Hypernetwork(ghn2(**SIZES), decoder=NoPositions())
    with pytest.raises(ValueError, match="^role is 'position', which none of NoPositions, VectorD"):
        ghn_jax.hypernetworks.decoders.request_tile(
            model.create_decoders(), (1, 4, 4, 8), "position"
        )
