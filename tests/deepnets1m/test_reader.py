"""Published files are read as the original reads them; what is written reads back the same."""

import json
import multiprocessing
import pickle
import shutil
import zlib
from pathlib import Path

import h5py
import networkx
import numpy as np
import pytest

from ghn_jax.deepnets1m.hdf5_schema import check_distances
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.deepnets1m.writer import (
    DeepNets1MWriter,
    make_record,
    merge_evaluation_splits,
)
from ghn_jax.sampling import SpaceConfig, sample_architecture
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(("split", "index"), [("test", 1), ("bnfree", 0)])
def test_graph_of_a_published_file_is_what_the_original_reads(split, index):
    # The edges and primitives the original's hypernetwork was given for this file's network.
    expected = np.load(DATA / "deepnets1m_graphs.npz")
    graph = DeepNets1M(DATA, split).graph(index, num_classes=10)
    np.testing.assert_array_equal(graph.primitive, expected[f"{split}_{index}_primitive"])
    edges = set(zip(graph.senders, graph.receivers, graph.distance, strict=True))
    assert edges == {tuple(row) for row in expected[f"{split}_{index}_edges"]}


def test_published_entries():
    nets = DeepNets1M(DATA, "test")
    assert len(nets) == 2
    stored = nets[1]
    assert stored.architecture.channels == 48
    assert stored.architecture.genotype.normal[:2] == (("dil_conv_3x3", 0), ("conv_7x7", 1))
    assert stored.adjacency.shape == (88, 88) and stored.adjacency.dtype == np.uint8
    assert stored.primitives[:3] == ("input", "conv", "bn")
    assert stored.names[:3] == ("input", "stem0.0.weight", "stem0.1.weight")
    assert nets.entry(1)["num_params"]["cifar10"] == 1081626
    assert [net.architecture.channels for net in nets] == [32, 48]


@pytest.mark.parametrize(("image_size", "channels"), [(32, 64), (224, 32)])
def test_wide_multiplies_the_width(image_size, channels):
    assert DeepNets1M(DATA, "wide", image_size).architecture(0).channels == channels


def test_shapes_and_tensors_of_a_published_graph():
    nets = DeepNets1M(DATA, "test")
    graph, stored = nets.graph(1, num_classes=10), nets[1]
    plan = lower(stored.architecture, 32, 10)
    assert [tensor.path for tensor in graph.tensors] == [tensor.path for tensor in plan.tensors]
    row = stored.names.index("classifier.0.weight")
    assert tuple(graph.shape[row]) == (10, 2 * 4 * 48, 1, 1)
    assert tuple(graph.shape[stored.names.index("stem0.0.weight")]) == (24, 3, 7, 7)
    for row, primitive in enumerate(stored.primitives):
        if primitive in ("max_pool", "avg_pool"):
            assert tuple(graph.shape[row]) == (1, 1, 3, 3)
        elif primitive in ("sum", "concat", "glob_avg", "input"):
            assert not graph.shape[row].any()
    for tensor in graph.tensors:
        expected = {"scale": ("bn", "ln"), "depthwise": ("sep_conv", "dil_conv")}
        assert stored.primitives[tensor.node] in expected.get(
            tensor.role, ("conv", "bias", "bn", "ln")
        )


def write(directory, split, count, seed=0):
    space = SpaceConfig(split=split)
    architectures = [sample_architecture(space, seed, index) for index in range(count)]
    with DeepNets1MWriter(directory, split) as writer:
        for architecture in architectures:
            writer.write(make_record(architecture, split))
    return architectures


@pytest.mark.parametrize("split", ["val", "wide", "deep", "dense", "bnfree", "search"])
def test_round_trip_of_evaluation_splits(tmp_path, split):
    architectures = write(tmp_path, split, 5)
    nets = DeepNets1M(tmp_path, split)
    assert [net.architecture for net in nets] == architectures
    for index, architecture in enumerate(architectures):
        expected = build_graph(lower(architecture, 32, 10))
        graph = nets.graph(index, num_classes=10)
        for field in ("primitive", "shape", "senders", "receivers", "distance"):
            np.testing.assert_array_equal(getattr(graph, field), getattr(expected, field))
        assert graph.tensors == expected.tensors


def test_training_networks_get_a_width_when_read(tmp_path):
    write(tmp_path, "train", 40)
    nets = DeepNets1M(tmp_path, "train", seed=1)
    assert all("C" not in nets.entry(index) for index in range(len(nets)))
    first = [nets.architecture(index) for index in range(len(nets))]
    assert first == [net.architecture for net in DeepNets1M(tmp_path, "train", seed=1)]
    again = [nets.architecture(index, draw=1) for index in range(len(nets))]
    assert [a.genotype for a in again] == [a.genotype for a in first]
    assert again != first
    for index, architecture in enumerate(first):
        assert architecture.channels in range(32, 129, 16)
        if nets.entry(index)["num_params"]["cifar10"] > 800_000:
            assert architecture.channels == 32


def test_stored_distances_are_shortest_paths(tmp_path):
    write(tmp_path, "val", 3)
    for net in DeepNets1M(tmp_path, "val"):
        own = networkx.from_numpy_array(net.adjacency == 1, create_using=networkx.DiGraph)
        lengths = dict(networkx.all_pairs_shortest_path_length(own))
        for source, reached in lengths.items():
            row = {target: net.adjacency[source, target] for target in reached if target != source}
            assert row == {target: reached[target] for target in row}
            assert np.count_nonzero(net.adjacency[source]) == len(row)


def test_files_have_the_published_layout(tmp_path):
    write(tmp_path, "train", 2)
    meta = json.loads((tmp_path / "deepnets1m_train_meta.json").read_text())
    assert set(meta) == {"train"} and set(meta["train"]) == {"nets", "meta"}
    published = json.loads((DATA / "deepnets1m_nets.json").read_text())["train"][0]
    assert set(meta["train"]["nets"][0]) == set(published)
    ids = meta["train"]["meta"]
    assert set(ids) == {"primitives_ext", "unique_op_names"}
    assert ids["primitives_ext"]["0"] == ids["unique_op_names"]["0"] == "input"
    with h5py.File(tmp_path / "deepnets1m_train.hdf5") as file:
        assert file.attrs["title"] == "DeepNets-1M"
        nodes = file["train/1/nodes"][()]
        assert nodes.dtype == np.uint16
        assert file["train/1/adj"].dtype == np.uint8
        # The original takes the last two nodes for the classifier's weight and bias.
        last = [ids["unique_op_names"][str(name)] for name in nodes[-2:, 2]]
    assert last[0].startswith("classifier.") and last[1] == last[0].replace("weight", "bias")


def test_names_of_older_files(tmp_path):
    for name in ("deepnets1m_eval.hdf5", "deepnets1m_eval_meta.json"):
        shutil.copy(DATA / name, tmp_path)
    path = tmp_path / "deepnets1m_eval_meta.json"
    meta = json.loads(path.read_text())
    ids = meta["test"]["meta"]
    older = {"conv": "conv_7x7", "sep_conv": "sep_conv_3x3", "max_pool": "max_pool_3x3"}
    older["bias"] = "fc-b"
    ids["primitives_ext"] = {
        key: older.get(name, name) for key, name in ids["primitives_ext"].items()
    }
    ids["unique_op_names"] = {
        key: name.replace("to_out.0.weight", "to_out.0.").replace(".op.", ".").replace("input", "")
        if "_ops" in name or name == "input"
        else name
        for key, name in ids["unique_op_names"].items()
    }
    path.write_text(json.dumps(meta))
    for index in range(2):
        old, new = (DeepNets1M(folder, "test")[index] for folder in (tmp_path, DATA))
        assert old.primitives == new.primitives
        assert old.names == new.names
    ids["primitives_ext"]["0"] = "conv3d"
    path.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="primitives_ext has the unknown primitive 'conv3d'"):
        DeepNets1M(tmp_path, "test")


def test_evaluation_splits_are_merged_as_the_original_does(tmp_path):
    written = {split: write(tmp_path, split, 2) for split in ("val", "deep")}
    write(tmp_path, "train", 1)
    path = merge_evaluation_splits(tmp_path)
    assert path == tmp_path / "deepnets1m_eval.hdf5"
    for split in written:
        (tmp_path / f"deepnets1m_{split}.hdf5").unlink()
    for split, architectures in written.items():
        nets = DeepNets1M(tmp_path, split)
        assert nets.path == path
        assert [net.architecture for net in nets] == architectures
    with h5py.File(path) as file:
        assert set(file) == {"val", "deep"} and file.attrs["title"] == "DeepNets-1M"
    with pytest.raises(ValueError, match="eval.hdf5 exists, expected a new file"):
        merge_evaluation_splits(tmp_path)
    path.unlink()
    (tmp_path / "deepnets1m_eval_meta.json").unlink()
    with pytest.raises(ValueError, match="has no evaluation split, expected some to merge"):
        merge_evaluation_splits(tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_half_written_stays(tmp_path):
    with pytest.raises(KeyboardInterrupt), DeepNets1MWriter(tmp_path, "val") as writer:
        writer.write(make_record(sample_architecture(SpaceConfig(split="val"), 0, 0), "val"))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"has no file for split 'val', expected .*val\.hdf5 or"):
        DeepNets1M(tmp_path, "val")
    with pytest.raises(ValueError, match=r"split is 'vall' \(did you mean 'val'\?\)"):
        DeepNets1M(tmp_path, "vall")
    with pytest.raises(
        ValueError, match="has no split 'dense', expected one of test, wide, bnfree"
    ):
        DeepNets1M(DATA, "dense")
    with pytest.raises(IndexError, match=r"index is 2, expected 0\.\.1"):
        DeepNets1M(DATA, "test")[2]
    write(tmp_path, "val", 1)
    with pytest.raises(ValueError, match=r"val\.hdf5 exists, expected a new file"):
        DeepNets1MWriter(tmp_path, "val")
    (tmp_path / "deepnets1m_val_meta.json").unlink()
    with pytest.raises(ValueError, match="expected the meta file beside the graphs"):
        DeepNets1M(tmp_path, "val")


def test_a_graph_that_lacks_a_parameter(tmp_path):
    write(tmp_path, "bnfree", 1)
    with h5py.File(tmp_path / "deepnets1m_bnfree.hdf5", "r+") as file:
        file["bnfree/0/nodes"][-1, 2] = 0
    with pytest.raises(ValueError, match=r"no node 'classifier\.\d\.bias' in cell"):
        DeepNets1M(tmp_path, "bnfree").graph(0, num_classes=10)


def read_first(nets):
    return nets[0].architecture.channels


def read_sums(nets, indices):
    """What two arrays of each network add up to."""
    return [
        (int(nets[i].adjacency.sum(dtype=int)), int(nets[i].nodes.sum(dtype=int))) for i in indices
    ]


def test_readers_travel_to_other_processes(tmp_path):
    nets = DeepNets1M(DATA, "test")
    assert read_first(nets) == 32  # opens the file here
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_first, (nets,)) == 32


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_several_processes_read_at_random_at_the_same_time(tmp_path, method):
    write(tmp_path, "val", 12)
    nets = DeepNets1M(tmp_path, "val")
    expected = read_sums(nets, range(12))  # the file is open here when the others start
    orders = [np.random.default_rng(seed).integers(0, 12, 200).tolist() for seed in range(2)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = [pool.apply_async(read_sums, (nets, order)) for order in orders]
        for order, result in zip(orders, results, strict=True):
            assert result.get(timeout=60) == [expected[index] for index in order]
    assert read_sums(nets, range(12)) == expected


def test_opening_reads_no_graph_and_little_travels(tmp_path, monkeypatch):
    write(tmp_path, "val", 12)
    reads = []
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda *arguments: reads.append(arguments), raising=True
    )
    nets = DeepNets1M(tmp_path, "val")
    assert nets.entry(11)["n_cells"] >= 4 and not reads
    # Positions of entries and tables of names, no entries: they are 500 bytes each and more.
    assert len(pickle.dumps(nets)) < 4000 + 16 * 12
    assert pickle.loads(pickle.dumps(nets)).entry(11) == nets.entry(11)


def test_files_cut_short_are_refused(tmp_path):
    write(tmp_path, "val", 3)
    path = tmp_path / "deepnets1m_val.hdf5"
    contents = path.read_bytes()
    for length in (0, 100, len(contents) // 2, len(contents) - 1):
        path.write_bytes(contents[:length])
        with pytest.raises(ValueError, match=r"val\.hdf5 is not an HDF5 file, or is truncated: "):
            DeepNets1M(tmp_path, "val")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    for name, count, seed in (("a", 3, 0), ("b", 4, 0), ("c", 3, 1)):
        write(tmp_path / name, "val", count, seed)
    meta, graphs = "deepnets1m_val_meta.json", "deepnets1m_val.hdf5"
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(tmp_path / "a" / graphs, mixed)
    shutil.copy(tmp_path / "b" / meta, mixed)
    with pytest.raises(ValueError, match="the meta file has 4 networks in split 'val', the file 3"):
        DeepNets1M(mixed, "val")
    shutil.copy(tmp_path / "b" / graphs, mixed)
    shutil.copy(tmp_path / "a" / meta, mixed)
    with pytest.raises(ValueError, match="the meta file has 3 networks in split 'val', the file 4"):
        DeepNets1M(mixed, "val")
    shutil.copy(tmp_path / "c" / graphs, mixed)
    with pytest.raises(ValueError, match="does not belong to its meta file: val/0 has adj"):
        DeepNets1M(mixed, "val")[0]


def test_unknown_ids_are_refused(tmp_path):
    write(tmp_path, "val", 1)
    with h5py.File(tmp_path / "deepnets1m_val.hdf5", "r+") as file:
        file["val/0/nodes"][3, 2] = 60000
    with pytest.raises(ValueError, match=r"val/0 has the id 60000 in column 2 of nodes, expected"):
        DeepNets1M(tmp_path, "val")[0]
    with h5py.File(tmp_path / "deepnets1m_val.hdf5", "r+") as file:
        del file["val/0/adj"]
    with pytest.raises(ValueError, match=r"hdf5 cannot be read at val/0: .*adj"):
        DeepNets1M(tmp_path, "val")[0]


@pytest.mark.parametrize("index", [-1, 2, 10**9])
def test_indices_out_of_range_are_refused(index):
    nets = DeepNets1M(DATA, "test")
    for read in (nets.__getitem__, nets.entry, nets.architecture):
        with pytest.raises(IndexError, match=rf"index is {index}, expected 0\.\.1 in .*eval.hdf5"):
            read(index)


def change_entry(directory, split, change):
    """Change the first entry of a meta file that `write` made."""
    path = directory / f"deepnets1m_{split}_meta.json"
    contents = json.loads(path.read_text())
    change(contents[split]["nets"][0])
    path.write_text(json.dumps(contents))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_cells", 10**9, "num_cells is 1000000000, expected at most 1000"),
        ("n_cells", None, "num_cells is None, expected a positive int"),
        ("n_cells", 4.0, "num_cells is 4.0, expected a positive int"),
        ("fc_layers", 10**7, "num_fc_layers is 10000000, expected at most 100"),
        ("C", 2**20, "channels is 1048576, expected at most 65536"),
        ("genotype", 3, "genotype is 3, expected a mapping"),
        ("num_nodes", 10**6, "num_nodes is 1000000, expected at most 10000"),
        ("num_nodes", "7", "num_nodes is '7', expected a positive int"),
        ("num_params", None, "num_params is None, expected a mapping"),
        ("num_params", {"cifar10": -1}, "num_params.cifar10 is -1, expected a positive int"),
        ("surplus", 1, "nets entry has the unknown key 'surplus'"),
    ],
)
def test_every_value_of_an_entry_is_checked(tmp_path, key, value, message):
    write(tmp_path, "val", 1)
    change_entry(tmp_path, "val", lambda entry: entry.update({key: value}))
    nets = DeepNets1M(tmp_path, "val")
    for read in (nets.entry, nets.architecture, nets.__getitem__):
        with pytest.raises(ValueError, match=rf"val_meta\.json: val/nets\[0\]: {message}"):
            read(0)


def replace(directory, name, values):
    """Replace an array of the first network."""
    with h5py.File(directory / "deepnets1m_val.hdf5", "r+") as file:
        del file[f"val/0/{name}"]
        file.create_dataset(f"val/0/{name}", data=values)


ADJACENCY_ERRORS = {
    "nan": (lambda a: np.where(a == 3, np.nan, a), "adj has the dtype float64, expected integers"),
    "fractional": (lambda a: a + 0.5, "adj has the dtype float64, expected integers"),
    "strings": (lambda a: np.full(a.shape, b"1"), "adj has the dtype .*, expected integers"),
    "negative": (lambda a: np.where(a == 3, -3, a.astype(int)), r"adj has values in -3\.\."),
    "huge": (lambda a: a.astype(int) * 10**15, "adj has values in 0..*, expected distances in 0"),
    "ones": (np.ones_like, "adj has a cycle, expected a directed acyclic graph"),
    "cycle": (lambda a: a + (a == 1).T, "adj has a cycle, expected a directed acyclic graph"),
    "self": (lambda a: a + np.eye(len(a), dtype=np.uint8), "adj has a cycle"),
    "diagonal": (lambda a: a + 5 * np.eye(len(a), dtype=np.uint8), "on its diagonal, expected 0"),
    "shortcut": (lambda a: np.where(a == 3, 2, a), r"adj\[\d+, \d+\] is 2, expected 3, the length"),
    "no path": (lambda a: np.where(a == 2, 0, a), r"adj\[\d+, \d+\] is 0, expected 2, the length"),
    "beyond": (lambda a: np.where(a == 0, 9, a), r"\] is 9, expected "),
    "flat": (np.ravel, r"adj has shape \(\d+,\), expected two axes of at most 10000"),
    "scalar": (lambda a: np.uint8(1), r"adj has shape \(\), expected two axes of at most 10000"),
}


@pytest.mark.parametrize("case", ADJACENCY_ERRORS)
def test_adjacencies_that_are_no_distances_of_a_graph_are_refused(tmp_path, case):
    change, message = ADJACENCY_ERRORS[case]
    write(tmp_path, "val", 1)
    stored = DeepNets1M(tmp_path, "val")[0].adjacency
    replace(tmp_path, "adj", change(stored))
    with pytest.raises(ValueError, match=rf"val\.hdf5 cannot be read at val/0: .*{message}"):
        DeepNets1M(tmp_path, "val")[0]


def test_distances_may_be_cut_off_from_51_on_and_nodes_in_any_order():
    chain = np.zeros((80, 80), np.int64)
    for start in range(80):
        for stop in range(start + 1, 80):
            chain[start, stop] = stop - start
    for longest in (50, 60, 79):
        cut = np.where(chain <= longest, chain, 0)
        order = np.random.default_rng(0).permutation(80)
        for distances in (cut, cut[np.ix_(order, order)]):
            found = check_distances(distances)
            assert found.dtype == np.uint8 and (found == distances).all()
    with pytest.raises(ValueError, match=r"adj\[0, 50\] is 0, expected 50"):
        check_distances(np.where(chain < 50, chain, 0))


def test_nodes_that_are_no_ids_are_refused(tmp_path):
    write(tmp_path, "val", 1)
    nodes = DeepNets1M(tmp_path, "val")[0].nodes
    for values, message in (
        (nodes.astype(float), "nodes has the dtype float64, expected integers"),
        (nodes.astype(int) - 1, "nodes has the id -1, expected ids from 0"),
        (nodes + np.array([0, 500, 0], np.uint16), "nodes has the cell 5.., expected 0.."),
    ):
        replace(tmp_path, "nodes", values)
        with pytest.raises(ValueError, match=rf"val\.hdf5 cannot be read at val/0: {message}"):
            DeepNets1M(tmp_path, "val")[0]


def test_graphs_that_lie_in_other_files_are_refused(tmp_path):
    write(tmp_path, "val", 1)
    path = tmp_path / "deepnets1m_val.hdf5"
    original = path.read_bytes()
    stored = DeepNets1M(tmp_path, "val")[0].adjacency
    (tmp_path / "secret").write_bytes(stored.tobytes())
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["adj"] = stored
        other["val/0/adj"] = stored

    def external(file):
        del file["val/0/adj"]
        where = [(str(tmp_path / "secret"), 0, stored.size)]
        file["val/0"].create_dataset("adj", stored.shape, "uint8", external=where)

    def virtual(file):
        del file["val/0/adj"]
        layout = h5py.VirtualLayout(stored.shape, "uint8")
        layout[:] = h5py.VirtualSource(tmp_path / "other.hdf5", "adj", stored.shape)
        file["val/0"].create_virtual_dataset("adj", layout)

    def linked(file):
        del file["val/0/adj"]
        file["val/0/adj"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "adj")

    def linked_group(file):
        del file["val/0"]
        file["val/0"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "val/0")

    def linked_split(file):
        del file["val"]
        file["val"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "val")

    for change in (external, virtual, linked, linked_group, linked_split):
        path.write_bytes(original)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(ValueError, match=r"val\.hdf5 cannot be read at val.* lies "):
            DeepNets1M(tmp_path, "val")[0]


def test_graphs_that_ask_for_memory_are_refused(tmp_path):
    write(tmp_path, "val", 1)
    path = tmp_path / "deepnets1m_val.hdf5"
    original = path.read_bytes()
    size = len(DeepNets1M(tmp_path, "val")[0].adjacency)
    square = (size, size)
    for how, message in (
        ({"shape": (70_000, 70_000)}, r"adj has shape \(70000, 70000\), expected two axes of at m"),
        ({"shape": square}, f"adj has 0 bytes, expected the {size**2} of its shape"),  # not stored
        ({"shape": square, "chunks": (5, 5)}, "adj has 0 of the .* chunks of its shape"),
        (
            {"shape": square, "chunks": (20_000, 20_000), "maxshape": (None, None)},
            r"adj has chunks of shape \(20000, 20000\), expected at most 100000000 elements",
        ),
        ({"shape": square, "chunks": square, "compression": "lzf"}, "adj has the filters .32000.,"),
    ):
        path.write_bytes(original)
        with h5py.File(path, "r+") as file:
            del file["val/0/adj"]
            file["val/0"].create_dataset("adj", dtype="uint8", **how)
        with pytest.raises(ValueError, match=rf"val\.hdf5 cannot be read at val/0: {message}"):
            DeepNets1M(tmp_path, "val")[0]


def test_compressed_bytes_have_a_limit(tmp_path):
    """A chunk may expand to more than its shape says."""
    write(tmp_path, "val", 1)
    size = len(DeepNets1M(tmp_path, "val")[0].adjacency)
    with h5py.File(tmp_path / "deepnets1m_val.hdf5", "r+") as file:
        del file["val/0/adj"]
        how = {"chunks": (size, size), "compression": "gzip"}
        adjacency = file["val/0"].create_dataset("adj", (size, size), "uint8", **how)
        adjacency.id.write_direct_chunk((0, 0), zlib.compress(bytes(3 << 19), 0))  # no smaller
        assert adjacency.id.get_storage_size() > 1 << 20
    with pytest.raises(ValueError, match="compressed bytes, expected at most 1048576"):
        DeepNets1M(tmp_path, "val")[0]


def test_splits_of_another_kind_are_refused(tmp_path):
    write(tmp_path, "val", 1)
    with h5py.File(tmp_path / "deepnets1m_val.hdf5", "r+") as file:
        del file["val"]
        file["val"] = np.zeros(3)
    with pytest.raises(ValueError, match="cannot be read at val: val is a Dataset, expected a gr"):
        DeepNets1M(tmp_path, "val")
