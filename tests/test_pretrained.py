"""The public call: what it takes of each kind of network."""

import pytest

import ghn_jax

CELL = (("conv_3x3", 0), ("conv_1x1", 1))
GENOTYPE = ghn_jax.Genotype(normal=CELL, normal_concat=(2,), reduce=CELL, reduce_concat=(2,))
ARCHITECTURE = ghn_jax.Architecture(GENOTYPE, num_cells=4, channels=16)


def test_an_architecture_takes_an_image_size_in_either_way():
    ghn = ghn_jax.load("digits")
    by_place, by_name = ghn.predict(ARCHITECTURE, 12), ghn.predict(ARCHITECTURE, image_size=12)
    assert by_place.network.plan.image_size == by_name.network.plan.image_size == 12
    assert ghn.predict(ARCHITECTURE, strict=True).network.plan.image_size == 8


def test_an_architecture_takes_nothing_else():
    with pytest.raises(ValueError, match=r"^nonsense, train given for an architecture, expected"):
        ghn_jax.load("digits").predict(ARCHITECTURE, nonsense=3, train=False)
