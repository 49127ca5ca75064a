"""Pictures of graphs: what they show, that nothing overlaps, files."""

import numpy as np
import pytest
from architecture_samples import VARIANTS, one_op

import ghn_jax
from ghn_jax.architectures import RESNET50
from ghn_jax.drawing import STYLES, place_nodes
from ghn_jax.graphs import PRIMITIVES
from ghn_jax.graphs.properties import find_parents, graph_properties
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

GRAPHS = {
    "resnet50": build_graph(lower(RESNET50, 224, 1000)),
    "36 cells": build_graph(lower(one_op("conv_3x3", num_cells=36, stem_type=1), 32, 10)),
    "attention": build_graph(lower(one_op("msa"), 32, 10)),
    "two layers": build_graph(lower(VARIANTS["two layers"], 32, 10)),
}


def test_every_primitive_has_a_look_of_its_own():
    assert set(STYLES) == set(PRIMITIVES)
    assert len(set(STYLES.values())) == len(PRIMITIVES)


@pytest.mark.parametrize("name", GRAPHS)
def test_nodes_do_not_overlap_and_the_page_is_no_strip(name):
    positions, _ = place_nodes(find_parents(GRAPHS[name]))
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() >= 1 - 1e-9
    width, height = np.ptp(positions, axis=0)
    if len(positions) > 100:
        assert 0.4 < width / height < 3


def test_edges_lead_down_odd_columns_and_up_even_ones():
    parents = find_parents(GRAPHS["resnet50"])
    positions, columns = place_nodes(parents)
    for node, sources in enumerate(parents):
        for source in sources:
            if columns[node] == columns[source]:
                step = positions[node, 1] - positions[source, 1]
                assert step < 0 if columns[node] % 2 == 0 else step > 0
            else:
                assert columns[node] > columns[source]


def test_a_picture_has_a_legend_of_what_is_there(tmp_path):
    graph = GRAPHS["resnet50"]
    figure = ghn_jax.draw(graph, tmp_path / "graph.svg")
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    names = [PRIMITIVES[p] for p in graph.primitive]
    assert labels == {f"{name} ({names.count(name)})" for name in set(names)}
    assert figure.axes[0].get_title() == str(graph_properties(graph))
    assert (tmp_path / "graph.svg").read_text().startswith("<?xml")
    ghn_jax.draw(GRAPHS["attention"], tmp_path / "graph.png", title="attention")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
