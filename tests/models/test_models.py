"""Networks people use: published numbers of parameters, graphs, and how much a GHN predicts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.graphs import PRIMITIVES
from ghn_jax.models import MODELS, build, field_defaults
from ghn_jax.tracing import make_report, trace, traced_network

IMAGES = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
# torchvision's documentation, 1000 classes.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "vit_b16": 86_567_656,
    "vit_l16": 304_326_632,
    # By hand from docs/method.md, 'Operations': patches, positions, ten blocks of two norms, qkv,
    # projection and MLP, and the head.
    "deepnets_vit": 16 * 16 * 3 * 128
    + 14 * 14 * 128
    + 10 * (2 * 2 * 128 + 128 * 384 + 3 * (128 * 128 + 128))
    + 128 * 1000
    + 1000,
    "convnext_t": 28_589_128,
    "convnext_s": 50_223_688,
    "convnext_b": 88_591_464,
    "convnext_l": 197_767_336,
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
    "swin_t": 28_288_354,
    "vgg16_bn": 138_365_992,
    "densenet121": 7_978_856,
}
# One of each family; deeper ones repeat the same blocks.
DEFAULT = (
    *("resnet18", "resnet50", "vit_b16", "deepnets_vit", "convnext_t", "mobilenet_v2"),
    *("efficientnet_b0", "swin_t", "vgg16_bn", "densenet121"),
)
NAMES = [
    name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED
]


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Flax's average pool mixes integers and floats.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@functools.cache
def traced(name):
    return trace(build(name), IMAGES, num_classes=1000)


def count(name):
    names = [PRIMITIVES[p] for p in traced(name).graph.primitive]
    return {primitive: names.count(primitive) for primitive in set(names)}


def test_every_model_has_a_published_count():
    assert set(PUBLISHED) == set(MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters_is_the_published_one(name):
    report = make_report(traced(name))
    assert report.num_parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", NAMES)
def test_all_parameters_are_predicted_but_swins_position_biases(name):
    report = make_report(traced(name))
    kept = {path for path in report.kept if not path.startswith("batch_stats/")}
    if name == "swin_t":
        assert len(kept) == 12
        assert all(path.endswith("attention/position_bias") for path in kept)
        missing = sum(
            169 * heads * n for heads, n in zip((3, 6, 12, 24), (2, 2, 6, 2), strict=True)
        )
        assert report.num_predicted == PUBLISHED[name] - missing
    else:
        assert not kept
    roles = [tensor.role for tensor in traced(name).graph.tensors]
    assert roles.count("classifier_kernel") == roles.count("classifier_bias") == 1


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg16_bn"])
def test_the_initialiser_shows_the_graph_of_the_call(name, monkeypatch):
    monkeypatch.setattr(traced_network, "_read_initialiser", lambda *arguments: None)
    expected, found = trace(build(name), IMAGES, num_classes=1000), traced(name)
    assert found.graph.tensors == expected.graph.tensors
    assert found.kept == expected.kept
    for field in ("primitive", "shape", "senders", "receivers", "distance"):
        np.testing.assert_array_equal(getattr(found.graph, field), getattr(expected.graph, field))


def test_graph_of_a_resnet():
    # 16 blocks of 3 convolutions, 4 shortcuts, stem and head.
    assert count("resnet50") == {
        **{"input": 1, "conv": 16 * 3 + 4 + 2, "bn": 16 * 3 + 4 + 1, "sum": 16},
        **{"max_pool": 1, "glob_avg": 1, "bias": 1},
    }


def test_graph_of_a_vision_transformer():
    # Per layer: four projections and two layers of the MLP, all with biases, two norms.
    assert count("vit_b16") == {
        **{"input": 1, "conv": 12 * 6 + 2, "bias": 12 * 6 + 2, "ln": 12 * 2 + 1},
        **{"msa": 12, "sum": 12 * 2 + 1, "pos_enc": 2, "concat": 1},
    }
    shapes = {t.path: t.shape for t in traced("vit_b16").graph.tensors}
    assert shapes["position",] == (1, 14, 14, 768)


def test_graph_of_a_convnext():
    # Layer scales are taken for layer norms; 18 blocks, 4 stems, one norm in the head.
    assert count("convnext_t") == {
        **{"input": 1, "sep_conv": 18, "conv": 18 * 2 + 4 + 1, "bias": 18 * 3 + 4 + 1},
        **{"ln": 18 * 2 + 4 + 1, "sum": 18, "glob_avg": 1},
    }


def test_graph_of_a_mobilenet():
    # 17 blocks, the first without expansion; a sum where neither size nor channels change.
    assert count("mobilenet_v2") == {
        **{"input": 1, "sep_conv": 17, "conv": 16 + 17 + 3, "bn": 16 + 2 * 17 + 2},
        **{"sum": 10, "glob_avg": 1, "bias": 1},
    }


def test_graph_of_an_efficientnet():
    # 16 blocks with a gate each, whose pools are no nodes.
    assert count("efficientnet_b0") == {
        **{"input": 1, "sep_conv": 16, "cse": 16, "conv": 15 + 2 * 16 + 16 + 3},
        **{"bias": 2 * 16 + 1, "bn": 15 + 2 * 16 + 2, "sum": 9, "glob_avg": 1},
    }


def test_graph_of_a_swin():
    # 12 blocks and 3 merges of patches, which are no nodes.
    assert count("swin_t") == {
        **{"input": 1, "conv": 12 * 4 + 3 + 2, "bias": 12 * 4 + 2, "ln": 12 * 2 + 3 + 2},
        **{"msa": 12, "sum": 24, "glob_avg": 1},
    }


def test_graph_of_a_densenet():
    # 58 layers; the first of each block appends to what it was given.
    assert count("densenet121") == {
        **{"input": 1, "conv": 2 * 58 + 3 + 2, "bn": 2 * 58 + 3 + 2, "concat": 58},
        **{"max_pool": 1, "avg_pool": 3, "glob_avg": 1, "bias": 1},
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name != "deepnets_vit"])
def test_small_images(name):
    module = build(name, num_classes=10, small_images=True)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    outputs, variables = jax.eval_shape(
        functools.partial(module.init_with_output, train=True), jax.random.key(0), images
    )
    assert outputs.shape == (2, 10)
    small = sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"]))
    assert small < PUBLISHED[name]


def test_swins_relative_positions_and_mask_by_hand():
    from ghn_jax.models.swin import _relative_index, _shift_mask

    # 2x2 windows: offsets -1..1 in both directions, row 3 (dy + 1) + (dx + 1).
    np.testing.assert_array_equal(_relative_index(2)[0], [4, 3, 1, 0])
    np.testing.assert_array_equal(_relative_index(2)[3], [8, 7, 5, 4])
    mask = _shift_mask(4, 4, 2, (1, 1))
    assert (mask[0] == 0).all()  # the first window holds neighbours only
    # The last window holds four pixels from the four corners of the image.
    np.testing.assert_array_equal(mask[3] == 0, np.eye(4, dtype=bool))


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(ValueError, match=r"^name is 'resnet_50' \(did you mean 'resnet50'\?\)"):
        build("resnet_50")


def test_fields_are_those_of_the_network():
    assert build("efficientnet_b0", drop_rate=0.1, small_images=True).drop_rate == 0.1
    assert field_defaults("vgg16_bn") == {"dropout_rate": 0.5, "small_images": False}
    assert field_defaults("small_resnet")["width"] == 16
    for fields, text in (
        (
            {"small_image": True},
            r"resnet50 has no field 'small_image' \(did you mean 'small_images'",
        ),
        ({"parent": None}, "resnet50 has no field 'parent', expected some of is_bottleneck, width"),
        ({"small_images": "no"}, "small_images is 'no', expected True or False"),
        ({"width": 0}, "width is 0, expected a positive int"),
        ({"num_classes": -10}, "num_classes is -10, expected a positive int"),
        ({"operations": "cpu"}, "operations is 'cpu', expected Operations"),
    ):
        with pytest.raises(ValueError, match=f"^{text}"):
            build("resnet50", **fields)
    with pytest.raises(ValueError, match=r"^drop_rate is 1.5, expected a number in \[0, 1\)"):
        build("convnext_t", drop_rate=1.5)
