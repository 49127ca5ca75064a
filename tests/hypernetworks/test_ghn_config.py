"""Configurations of hypernetworks: the published variants and what is refused."""

import json

import pytest

from ghn_jax.hypernetworks import GHNConfig, ghn1, ghn2, mlp


def test_variants_are_those_of_the_published_table():
    # docs/method.md, 'Variants': virtual edges, layer norm, weight norm.
    table = {
        config.message_passing.name + str(config.virtual_edges): (
            config.layer_norm,
            config.normalize_parameters,
        )
        for config in (ghn1(), ghn2(), mlp())
    }
    assert table == {
        "gated_gnn1": (False, False),
        "gated_gnn50": (True, True),
        "mlp50": (True, True),
    }
    assert ghn2() == GHNConfig()


def test_overrides_replace_single_fields():
    assert ghn1(hidden_size=8).hidden_size == 8
    assert ghn1(layer_norm=True).layer_norm
    assert mlp(virtual_edges=1).message_passing.name == "mlp"


def test_dictionary_survives_json():
    config = mlp(num_classes=7, max_shape=(8, 8, 3, 3))
    assert GHNConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_classes", 0, "num_classes is 0, expected a positive int"),
        ("num_classes", True, "num_classes is True, expected a positive int"),
        ("hidden_size", 30, "hidden_size is 30, expected a positive multiple of 4"),
        ("max_shape", (64, 64, 11), r"max_shape is \(64, 64, 11\), expected four positive ints"),
        ("max_shape", (64, 64, 11, 9), r"max_shape is \(64, 64, 11, 9\), .* equal to width"),
        ("max_shape", 64, "max_shape is 64, expected a sequence"),
        (
            "message_passing",
            "gated_gn",
            r"message_passing.name is 'gated_gn' \(did you mean 'gated_gnn'\?\), expected",
        ),
        ("virtual_edges", 0, r"virtual_edges is 0, expected an int from 1 \(none\) to 250"),
        ("layer_norm", 1, "layer_norm is 1, expected False, True"),
        ("normalize_parameters", None, "normalize_parameters is None, expected False, True"),
        ("decoder", "cnn", "decoder.name is 'cnn', expected one of conv, mlp, or one of your own"),
    ],
)
def test_bad_fields_are_named(field, value, expected):
    with pytest.raises(ValueError, match=expected):
        GHNConfig(**{field: value})


def test_mlp_decoder_needs_square_tiles():
    with pytest.raises(ValueError, match="expected as many output as input channels"):
        GHNConfig(decoder="mlp", max_shape=(8, 4, 3, 3))
