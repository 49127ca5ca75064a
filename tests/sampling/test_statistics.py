"""The distribution of architectures against the original's numbers."""

import math

import numpy as np
import pytest

from ghn_jax.sampling import SpaceConfig
from ghn_jax.sampling.statistics import (
    ORIGINAL_TRAIN,
    Quantity,
    main,
    measure_distribution,
    plot_distribution,
    tabulate,
)


@pytest.fixture(scope="module")
def distribution():
    return measure_distribution(SpaceConfig(), seed=0, num_architectures=600)


@pytest.mark.parametrize("name", ORIGINAL_TRAIN)
def test_training_distribution_is_the_originals(distribution, name):
    # 26 quantities, each a difference of two samples: 3 standard errors of that difference.
    assert abs(distribution.deviation(name)) < 3


def test_extent_of_the_training_distribution(distribution):
    nodes = distribution.quantities["nodes"]
    assert 70 < nodes.std < 110  # 86 in the original's sample
    assert nodes.minimum < 60 and nodes.maximum > 400
    parameters = distribution.quantities["parameters (M, C=32)"]
    assert parameters.minimum < 0.06 and 5 < parameters.maximum <= 10


def test_quantity_by_hand():
    plain = Quantity(np.array([1.0, 2.0, 3.0, 6.0]), np.ones(4))
    assert (plain.minimum, plain.maximum, plain.mean) == (1.0, 6.0, 3.0)
    assert plain.std == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 4))
    assert plain.standard_error(4) == pytest.approx(plain.std / 2)
    share = Quantity(np.array([1.0, 1.0, 2.0]), np.array([4.0, 4.0, 8.0]))
    assert share.mean == 0.25
    assert share.standard_error(100) == 0.0  # the same share in every architecture


def test_shares_of_operations_sum_to_one(distribution):
    operations = list(ORIGINAL_TRAIN)[-15:]
    assert sum(distribution.quantities[name].mean for name in operations) == pytest.approx(1.0)


def test_table_compares_only_the_training_distribution(distribution):
    assert len(tabulate(distribution).columns) == 4
    other = measure_distribution(SpaceConfig(max_nodes=100), seed=0, num_architectures=5)
    table = tabulate(other)
    assert len(table.columns) == 2
    assert table.row_count == len(other.quantities)


def test_plot_and_command(distribution, tmp_path, capsys):
    plot_distribution(distribution, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    main(["--split", "deep", "--num_architectures", "3", "--plot", str(tmp_path / "deep.png")])
    assert "3 architectures of split 'deep'" in capsys.readouterr().out
    assert (tmp_path / "deep.png").exists()


def test_help_describes_every_flag(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for flag in ("--split", "--num_architectures", "--seed", "--plot"):
        assert flag in text


def test_too_few_architectures():
    with pytest.raises(ValueError, match="num_architectures is 1, expected at least 2"):
        measure_distribution(SpaceConfig(), seed=0, num_architectures=1)
