"""Every rule of docs/method.md, 'Sampling', as a property over draws from each split."""

import functools
import itertools
from collections import Counter

import numpy as np
import pytest

from ghn_jax.architectures import OPERATIONS, UNLEARNED_OPERATIONS
from ghn_jax.sampling import (
    SPLITS,
    ArchitectureStream,
    SpaceConfig,
    count_parameters,
    sample_architecture,
)
from ghn_jax.sampling.sampler import TRAINING_WIDTHS
from ghn_jax.targets.plan import lower

NUM_DRAWS = 200
IN_DISTRIBUTION = ("train", "val", "test")
# split: cells, deep above (all thresholds), steps, steps if deep, millions of parameters
RULES = {
    **{split: ((4, 18), (7, 10), (1, 4), 2, 10) for split in (*IN_DISTRIBUTION, "wide", "bnfree")},
    "deep": ((10, 36), (18, 18), (1, 4), 2, 100),
    "dense": ((4, 18), (7, 10), (2, 10), 6, 100),
    "search": ((6, 20), (10, 10), (1, 6), 3, 10),
}


@functools.cache
def draw(split, seed=0):
    space = SpaceConfig(split=split)
    return tuple(sample_architecture(space, seed, index) for index in range(NUM_DRAWS))


def reference_count(architecture, image_size=32):
    values = {**architecture.to_official(), "C": 32, "fc_dim": 256}
    return count_parameters(type(architecture).from_official(values), image_size, 10)


def test_every_split_is_covered():
    assert set(RULES) == set(SPLITS)


@pytest.mark.parametrize("split", RULES)
class TestRulesOfEverySplit:
    def test_cells_and_steps(self, split):
        (fewest, most), (low, high), (few_steps, many_steps), deep_steps, _ = RULES[split]
        for architecture in draw(split):
            steps = architecture.genotype.num_steps
            assert fewest <= architecture.num_cells <= most
            limit = deep_steps if architecture.num_cells > high else many_steps
            assert few_steps <= steps <= limit
            if architecture.num_cells <= low:
                assert steps <= many_steps
        cells = {architecture.num_cells for architecture in draw(split)}
        assert len(cells) > 0.8 * (most - fewest + 1)

    def test_operations_that_are_rejected(self, split):
        for architecture in draw(split):
            genotype = architecture.genotype
            for cell in (genotype.normal, genotype.reduce):
                counts = Counter(operation for operation, _ in cell)
                assert counts["cse"] <= 1
                assert counts["conv_5x5"] + counts["conv_7x7"] <= 1
            operations = set(genotype.operations)
            has_conv = any("conv" in operation for operation in operations)
            assert has_conv or "msa" in operations
            assert has_conv or "cse" not in operations

    def test_none_only_with_several_steps(self, split):
        for architecture in draw(split):
            if architecture.genotype.num_steps == 1:
                assert "none" not in architecture.genotype.operations

    def test_inputs_of_a_step_differ(self, split):
        for architecture in draw(split):
            for cell in (architecture.genotype.normal, architecture.genotype.reduce):
                for (_, first), (_, second) in zip(cell[::2], cell[1::2], strict=True):
                    assert first != second

    def test_concat_keeps_the_last_step_and_is_shared(self, split):
        for architecture in draw(split):
            genotype = architecture.genotype
            assert genotype.normal_concat == genotype.reduce_concat
            assert genotype.normal_concat[-1] == genotype.num_steps + 1

    def test_size_and_connectivity(self, split):
        limit = RULES[split][-1] * 1e6
        for architecture in draw(split):
            assert reference_count(architecture) <= limit
            assert reference_count(architecture, 224) <= limit
            lower(architecture, 32, 10)  # raises where disconnected

    def test_choices_around_the_cells(self, split):
        high = RULES[split][1][1]
        for architecture in draw(split):
            assert architecture.stem_kernel in (3, 5, 7)
            assert architecture.num_fc_layers in (1, 2)
            assert architecture.stem_type == 0 or not architecture.stem_pool
            if architecture.has_attention or architecture.num_cells > high:
                assert architecture.global_pool
            if architecture.genotype.num_steps > 1 or architecture.channel_multiplier > 1:
                assert architecture.preprocess
            elif split != "search" and not architecture.has_attention:
                assert architecture.preprocess

    def test_norm(self, split):
        small_cells = RULES[split][0][0] + 1
        small_steps = RULES[split][3]
        for architecture in draw(split):
            small = (
                architecture.num_cells <= small_cells
                and architecture.genotype.num_steps <= small_steps
            )
            if split == "bnfree":
                assert architecture.norm is None
            elif split == "search" or not small:
                assert architecture.norm == "batch"

    def test_width_follows_size(self, split):
        factor = 4 if split == "wide" else 1
        for architecture in draw(split):
            width, remainder = divmod(architecture.channels, factor)
            assert remainder == 0
            assert width in allowed_widths(architecture)
            assert architecture.fc_size in range(64, 513, 64)
            if width > 64 or len(allowed_widths(architecture)) < len(TRAINING_WIDTHS):
                assert architecture.fc_size <= 256


def allowed_widths(architecture):
    millions = reference_count(architecture) / 1e6
    cells = architecture.num_cells
    large_kernels = {"conv_5x5", "conv_7x7"} & set(architecture.genotype.operations)
    if millions > 0.8 or not architecture.global_pool or large_kernels or cells > 12:
        return (32,)
    if millions > 0.4 or cells > 10:
        return (32, 48)
    if millions > 0.2 or cells > 8:
        return (32, 48, 64)
    return tuple(range(32, 129, 16))


def test_even_choices_are_even():
    # 3 standard errors of a binomial share; the rules of rejection ignore these choices.
    architectures = draw("train") + draw("val") + draw("test")
    count = len(architectures)
    shares = {
        "stem type": np.mean([a.stem_type == 1 for a in architectures]),
        "widening": np.mean([a.channel_multiplier == 2 for a in architectures]),
        "two linear layers": np.mean([a.num_fc_layers == 2 for a in architectures]),
        "pool after type 0": np.mean([a.stem_pool for a in architectures if a.stem_type == 0]),
        "input order": np.mean([a.genotype.normal[0][1] == 0 for a in architectures]),
    }
    for name, share in shares.items():
        size = count if name != "pool after type 0" else count * (1 - shares["stem type"])
        assert abs(share - 0.5) < 3 * 0.5 / np.sqrt(size), name


def test_half_of_the_reduction_cells_have_no_learned_operation():
    # Drawn ones that happen to have none, and the rejection of large cells, push it above one half.
    unlearned = [
        all(operation in UNLEARNED_OPERATIONS for operation, _ in architecture.genotype.reduce)
        for architecture in draw("train") + draw("val") + draw("test")
    ]
    assert 0.45 < np.mean(unlearned) < 0.65


def test_search_draws_networks_without_preprocessing():
    # One step, no widening: 80% preprocess without attention, 20% with.
    space = SpaceConfig(split="search", max_steps=1)
    draws = [sample_architecture(space, 0, index) for index in range(600)]
    free = [a for a in draws if a.channel_multiplier == 1]
    for attention, share in ((False, 0.8), (True, 0.2)):
        values = [a.preprocess for a in free if a.has_attention == attention]
        error = np.sqrt(share * (1 - share) / len(values))
        assert abs(np.mean(values) - share) < 3 * error


def test_splits_are_disjoint_streams():
    splits = (*IN_DISTRIBUTION, "deep", "dense", "bnfree", "search")
    for first, second in itertools.combinations(splits, 2):
        genotypes = {a.genotype for a in draw(first) if a.genotype.num_steps > 1}
        assert not genotypes & {a.genotype for a in draw(second) if a.genotype.num_steps > 1}


@pytest.mark.parametrize(("image_size", "factor"), [(32, 4), (224, 2)])
def test_wide_is_test_with_more_channels(image_size, factor):
    for index in range(20):
        narrow, wide = (
            sample_architecture(SpaceConfig(split=split, image_size=image_size), 0, index)
            for split in ("test", "wide")
        )
        assert wide.channels == factor * narrow.channels
        assert {**wide.to_dict(), "channels": narrow.channels} == narrow.to_dict()


def test_the_same_arguments_give_the_same_architecture():
    space = SpaceConfig()
    stream = ArchitectureStream(space, seed=3)
    forward = list(itertools.islice(stream, 10))
    assert [stream[index] for index in reversed(range(10))] == forward[::-1]
    assert list(itertools.islice(stream.iterate_from(7), 3)) == forward[7:]
    assert sample_architecture(SpaceConfig(), 3, 5) == forward[5]
    assert sample_architecture(space, 4, 5) != forward[5]
    assert sample_architecture(space, 3, 10**12) != forward[0]


def test_restrictions_that_narrow():
    allowed = ("conv_3x3", "conv_1x1", "max_pool_3x3", "none")
    space = SpaceConfig(
        widths=(16,),
        fc_sizes=(8, 24),
        allowed_operations=allowed,
        num_cells=(2, 5),
        max_steps=2,
        global_pool_only=True,
    )
    draws = [sample_architecture(space, 0, index) for index in range(100)]
    assert {a.channels for a in draws} == {16}
    assert {a.fc_size for a in draws} == {8, 24}
    assert {a.num_cells for a in draws} == {2, 3, 4, 5}
    assert {a.genotype.num_steps for a in draws} == {1, 2}
    assert all(a.global_pool for a in draws)
    assert {operation for a in draws for operation in a.genotype.operations} == set(allowed)


def test_restrictions_that_reject():
    space = SpaceConfig(max_nodes=80, max_parameters=200_000)
    for index in range(30):
        architecture = sample_architecture(space, 0, index)
        assert len(lower(architecture, 32, 10).nodes) <= 80
        assert reference_count(architecture) <= 200_000
    unrestricted = draw("train")
    kept = [a for a in unrestricted if len(lower(a, 32, 10).nodes) <= 80]
    assert 0 < len(kept) < len(unrestricted)


def test_learned_operations_alone_are_enough():
    space = SpaceConfig(allowed_operations=("conv_3x3", "msa"))
    operations = sample_architecture(space, 0, 0).genotype.operations
    assert set(operations) <= {"conv_3x3", "msa"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "tets"}, r"split is 'tets' \(did you mean 'test'\?\)"),
        (
            {"allowed_operations": ("conv3x3",)},
            r"allowed_operations contains 'conv3x3' \(did you mean 'conv_3x3'\?\)",
        ),
        ({"allowed_operations": ()}, r"allowed_operations is \(\), expected a non-empty tuple"),
        ({"allowed_operations": ("msa", "msa")}, "expected no operation twice"),
        ({"widths": (12,)}, "widths contains 12, expected multiples of 8"),
        ({"widths": (3,), "allowed_operations": ("conv_1x1",)}, "expected multiples of 2"),
        ({"widths": 16}, "widths is 16, expected None or a non-empty tuple"),
        ({"fc_sizes": (0,)}, "fc_sizes is 0, expected a positive int"),
        ({"num_cells": (5, 4)}, r"num_cells is \(5, 4\), expected the smallest number first"),
        ({"num_cells": 5}, r"num_cells is 5, expected None or \(smallest, largest\)"),
        ({"split": "dense", "max_steps": 1}, "max_steps is 1, expected at least 2"),
        ({"max_nodes": 0}, "max_nodes is 0, expected a positive int"),
        ({"image_size": 32.0}, r"image_size is 32\.0, expected a positive int"),
        ({"global_pool_only": 1}, "global_pool_only is 1, expected False, True"),
    ],
)
def test_space_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        SpaceConfig(**fields)


def test_sampling_errors():
    with pytest.raises(ValueError, match="seed is -1, expected a non-negative int"):
        sample_architecture(SpaceConfig(), -1, 0)
    with pytest.raises(ValueError, match=r"index is 0\.5, expected a non-negative int"):
        sample_architecture(SpaceConfig(), 0, 0.5)
    with pytest.raises(ValueError, match="seed is None"):
        ArchitectureStream(SpaceConfig(), None)
    with pytest.raises(ValueError, match=r"allowed_operations is \('none',\), expected some bes"):
        sample_architecture(SpaceConfig(allowed_operations=("none",), max_steps=1), 0, 0)


def test_impossible_restrictions_are_reported(monkeypatch):
    monkeypatch.setattr("ghn_jax.sampling.sampler.MAX_ATTEMPTS", 50)
    space = SpaceConfig(max_parameters=10)
    with pytest.raises(ValueError, match="accepted none of 50 candidates.*loosen its restrict"):
        sample_architecture(space, 0, 0)


def test_all_operations_appear():
    found = {operation for a in draw("train") for operation in a.genotype.operations}
    assert found == set(OPERATIONS)
