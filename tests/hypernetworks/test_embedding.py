"""The shape vocabulary, row by row, and node embeddings."""

import numpy as np
import pytest
from random_parameters import draw_parameters

from ghn_jax.hypernetworks.embedding import NodeEmbedding, ShapeVocabulary

# Rows counted by hand: channels 1, 3, 8, 10 (classes), 16, 24, ..., 56, 64, 80, ..., 391 values;
# kernel sizes 1, 3, 5, 7, 9, 11, 14, 16.
CHANNEL_ROWS = {
    1: 0,
    2: 0,  # as far from 1 as from 3: the lower
    3: 1,
    4: 2,  # 4 to 7 take 8
    5: 2,
    7: 2,
    8: 2,
    9: 2,
    10: 3,
    13: 3,
    14: 4,
    16: 4,
    20: 4,
    21: 5,
    56: 9,
    60: 9,
    64: 10,
    72: 10,
    73: 11,
    80: 11,
    4080: 261,
    4088: 261,
    4089: 262,
    4096: 262,
    8192: 390,
    9000: 390,
    10**6: 390,
}
KERNEL_ROWS = {
    1: 0,
    2: 1,
    3: 1,
    4: 1,
    5: 2,
    11: 5,
    12: 5,
    13: 6,
    14: 6,
    15: 6,
    16: 7,
    17: 7,
    224: 7,
}


def test_channels_take_the_row_counted_by_hand():
    vocabulary = ShapeVocabulary(num_classes=10, max_kernel=11)
    shapes = [(channels, channels, 1, 1) for channels in CHANNEL_ROWS]
    rows = vocabulary.lookup(np.array(shapes))
    assert rows.dtype == np.int32
    assert rows[:, 0].tolist() == list(CHANNEL_ROWS.values())
    assert rows[:, 1].tolist() == list(CHANNEL_ROWS.values())


def test_kernel_sizes_take_the_row_counted_by_hand():
    vocabulary = ShapeVocabulary(num_classes=10, max_kernel=11)
    rows = vocabulary.lookup(np.array([(1, 1, size, size) for size in KERNEL_ROWS]))
    assert rows[:, 2].tolist() == list(KERNEL_ROWS.values())
    assert rows[:, 3].tolist() == list(KERNEL_ROWS.values())


def test_large_tiles_have_rows_for_13_and_15():
    vocabulary = ShapeVocabulary(num_classes=1000, max_kernel=16)
    assert vocabulary.spatial.tolist() == [1, 3, 5, 7, 9, 11, 13, 14, 15, 16]
    assert 1000 in vocabulary.channels


def test_classes_between_4_and_7_do_not_change_what_channels_take():
    rows = ShapeVocabulary(num_classes=5, max_kernel=11).lookup(np.array([[5, 8, 1, 1]]))
    assert rows[0, 0] == rows[0, 1]


def test_nodes_without_shape_take_the_rows_after_the_last():
    rows = ShapeVocabulary(num_classes=10, max_kernel=11).lookup(np.zeros((1, 4), np.int32))
    assert rows.tolist() == [[391, 391, 8, 8]]


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_every_row_of_the_vocabulary_is_reached_by_its_own_value(num_classes):
    vocabulary = ShapeVocabulary(num_classes, 11)
    values = vocabulary.channels
    rows = vocabulary.lookup(np.stack([values] * 2 + [np.ones_like(values)] * 2, axis=1))
    assert rows[:, 0].tolist() == list(range(len(values)))


@pytest.mark.parametrize("shape", [(-1, 1, 1, 1), (64, 0, 1, 1)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=f"shapes holds \\({shape[0]}, .*all positive, or all zero"
    ):
        ShapeVocabulary(10, 11).lookup(np.array([shape]))


def test_wrong_number_of_axes_is_refused():
    with pytest.raises(ValueError, match=r"shapes has shape \(2, 3\), expected \(..., 4\)"):
        ShapeVocabulary(10, 11).lookup(np.ones((2, 3), np.int32))


def test_embedding_adds_primitive_and_concatenated_shape():
    module = NodeEmbedding(hidden_size=8, num_classes=10, max_kernel=11)
    primitive = np.array([[4]], np.int32)
    shape_index = np.array([[[3, 1, 2, 0]]], np.int32)
    variables = draw_parameters(module.init, primitive, shape_index)
    tables = {name: np.asarray(table) for name, table in variables["params"].items()}
    assert tables["primitive"].shape == (15, 8)
    assert tables["channel"].shape == (392, 2)
    assert tables["spatial"].shape == (9, 2)
    shape = [tables["channel"][3], tables["channel"][1]]
    shape += [tables["spatial"][2], tables["spatial"][0]]
    expected = tables["primitive"][4] + np.concatenate(shape)
    found = module.apply(variables, primitive, shape_index)
    np.testing.assert_allclose(np.asarray(found)[0, 0], expected, rtol=1e-6)
