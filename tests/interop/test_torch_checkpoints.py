"""Reading official checkpoints: what is converted, and what is refused."""

import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import jax
import numpy as np
import pytest
from reference_predictions import LOCAL, find_reference

from ghn_jax.hypernetworks import GHNConfig, ghn1, mlp, parameter_shapes
from ghn_jax.interop.torch_checkpoints import (
    convert_config,
    convert_state_dict,
    load_torch_checkpoint,
    read_torch_file,
)


def write_archive(path, data, storages=(), byteorder="little"):
    """Write a file as `torch.save` lays it out."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", byteorder)
        for index, storage in enumerate(storages):
            archive.writestr(f"archive/data/{index}", storage.tobytes())
    return path


@pytest.fixture
def dump_tensor(monkeypatch, tmp_path):
    """Write {"x": tensor} with a view of a storage, referring to torch as its pickles do."""
    torch, torch_utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", torch_utils)

    class FloatStorage:
        pass

    def _rebuild_tensor_v2(*args):
        pass

    for owner, member in ((torch, FloatStorage), (torch_utils, _rebuild_tensor_v2)):
        member.__module__ = owner.__name__
        member.__qualname__ = member.__name__
        setattr(owner, member.__name__, member)

    storage_marker = object()

    class Tensor:
        def __init__(self, *view):
            self.view = view

        def __reduce__(self):
            return _rebuild_tensor_v2, (storage_marker, *self.view, False, OrderedDict())

    def dump(offset, shape, strides):
        storage = np.arange(12, dtype=np.float32)

        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                if value is storage_marker:
                    return ("storage", FloatStorage, "0", "cpu", storage.size)
                return None

        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump({"x": Tensor(offset, shape, strides)})
        return write_archive(tmp_path / "tensor.pt", buffer.getvalue(), [storage])

    return dump


def test_official_file_gives_config_parameters_and_epoch():
    checkpoint = load_torch_checkpoint(LOCAL / "ghn1.pt")
    assert checkpoint.config == ghn1(hidden_size=8, max_shape=(16, 16, 11, 11))
    assert checkpoint.epoch == 0
    expected = parameter_shapes(checkpoint.config)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), checkpoint.variables)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


def test_layouts_by_hand():
    state = read_torch_file(LOCAL / "ghn1.pt")["state_dict"]
    params = load_torch_checkpoint(LOCAL / "ghn1.pt").variables["params"]
    # Row 121 c + 11 h + w of the first layer is channel c at pixel (h, w).
    first = state["decoder.fc.0.weight"][121 * 5 + 11 * 2 + 7]
    np.testing.assert_array_equal(params["kernels"]["kernel_1"][:, 2, 7, 5], first)
    # Row 16 o + i of the last one is output channel o, input channel i.
    last = state["decoder.conv.2.weight"][16 * 3 + 9, :, 0, 0]
    np.testing.assert_array_equal(params["kernels"]["kernel_3"][:, 9, 3], last)
    bias = state["decoder.conv.2.bias"][16 * 3 + 9]
    assert params["kernels"]["bias_3"][9, 3] == bias


def test_mlp_file():
    config = load_torch_checkpoint(LOCAL / "mlp.pt").config
    assert config == mlp(hidden_size=8, max_shape=(16, 16, 11, 11))


def test_imagenet_file():
    config = load_torch_checkpoint(find_reference("ghn2_imagenet.pt")).config
    assert config == GHNConfig(num_classes=1000, hidden_size=16, max_shape=(32, 32, 16, 16))


def test_defaults_of_the_official_constructor():
    config = convert_config({"max_shape": (64, 64, 11, 11), "num_classes": 10})
    assert config == ghn1()


def test_mlp_decoder_is_converted():
    config = ghn1(hidden_size=8, max_shape=(4, 4, 3, 3), num_classes=5, decoder="mlp")
    state = dict(read_torch_file(LOCAL / "ghn1.pt")["state_dict"])
    state = {name: x for name, x in state.items() if not name.startswith("decoder.")}
    rng = np.random.default_rng(0)
    for name, shape in {
        "decoder.mlp.fc.0.weight": (16, 8),
        "decoder.mlp.fc.0.bias": (16,),
        "decoder.mlp.fc.2.weight": (4 * 4 * 3 * 3, 16),
        "decoder.mlp.fc.2.bias": (4 * 4 * 3 * 3,),
        "decoder.class_layer_predictor.1.weight": (5 * 4, 16),
        "decoder.class_layer_predictor.1.bias": (5 * 4,),
        "decoder_1d.fc.2.weight": (2 * 4, 16),
        "decoder_1d.fc.2.bias": (2 * 4,),
        "bias_class.1.weight": (5, 4),
        "bias_class.1.bias": (5,),
    }.items():
        state[name] = rng.standard_normal(shape).astype(np.float32)
    params = convert_state_dict(state, config)["params"]
    # Output 36 o + 9 i + 3 h + w.
    expected = state["decoder.mlp.fc.2.weight"][36 * 3 + 9 * 2 + 3 * 1 + 2]
    np.testing.assert_array_equal(params["kernels"]["kernel_2"][:, 1, 2, 2, 3], expected)


def test_names_of_parallel_training_are_understood():
    checkpoint = load_torch_checkpoint(LOCAL / "ghn1.pt")
    state = read_torch_file(LOCAL / "ghn1.pt")["state_dict"]
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    found = convert_state_dict(state, checkpoint.config)
    jax.tree.map(np.testing.assert_array_equal, found, checkpoint.variables)


def test_missing_and_unknown_tensors_are_named():
    state = dict(read_torch_file(LOCAL / "ghn1.pt")["state_dict"])
    state["gnn.mlp_ve.fc.0.weight"] = state.pop("embed.weight")
    config = ghn1(hidden_size=8, max_shape=(16, 16, 11, 11))
    with pytest.raises(
        ValueError, match=r"lacks \['embed.weight'\] .* unknown \['gnn.mlp_ve.fc.0.weight'\]"
    ):
        convert_state_dict(state, config)


def test_wrong_shape_is_named():
    state = dict(read_torch_file(LOCAL / "ghn1.pt")["state_dict"])
    state["gnn.gru.bias_ih"] = np.zeros(25, np.float32)
    config = ghn1(hidden_size=8, max_shape=(16, 16, 11, 11))
    with pytest.raises(ValueError, match=r"gnn.gru.bias_ih has shape \(25,\), expected \(24,\)"):
        convert_state_dict(state, config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hypernet": "gnn"}, "hypernet is 'gnn'.*, expected 'gatedgnn', 'mlp'"),
        ({"layers": 3}, "config has the unknown key 'layers'"),
        ({"hid": 30}, "hidden_size is 30, expected a positive multiple of 4"),
    ],
)
def test_configs_of_other_models_are_refused(changes, expected):
    official = {"max_shape": (64, 64, 11, 11), "num_classes": 10} | changes
    with pytest.raises(ValueError, match=expected):
        convert_config(official)


def test_views_of_a_storage_are_read(dump_tensor):
    found = read_torch_file(dump_tensor(1, (2, 3), (1, 4)))["x"]
    np.testing.assert_array_equal(found, [[1, 5, 9], [2, 6, 10]])
    found[0, 0] = 7  # an array of its own


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(10, (3,), (1,)), (0, (2, 3), (1, 8)), (0, (2**40,), (1,))],
)
def test_views_beyond_their_storage_are_refused(dump_tensor, offset, shape, strides):
    with pytest.raises(ValueError, match="expected less than the 12 of its storage"):
        read_torch_file(dump_tensor(offset, shape, strides))


def test_views_backwards_are_refused(dump_tensor):
    with pytest.raises(ValueError, match=r"strides \(-1,\)"):
        read_torch_file(dump_tensor(3, (3,), (-1,)))


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    path = write_archive(tmp_path / "attack.pt", pickle.dumps({"state_dict": Attack()}))
    with pytest.raises(ValueError, match="file refers to posix.mkdir, expected only tensors"):
        read_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_builtins_are_refused(tmp_path, name):
    path = write_archive(tmp_path / "x.pt", f"cbuiltins\n{name}\n.".encode())
    with pytest.raises(ValueError, match=f"file refers to builtins.{name}"):
        read_torch_file(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="x.pt is no zip archive"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/weights", b"")
    with pytest.raises(ValueError, match="has 0 entries data.pkl, expected 1"):
        read_torch_file(path)
    with pytest.raises(ValueError, match="byteorder of .* is 'big', expected 'little'"):
        read_torch_file(write_archive(path, pickle.dumps({}), byteorder="big"))
    with pytest.raises(ValueError, match="x.pt cannot be read"):
        read_torch_file(write_archive(path, pickle.dumps({"a": 1})[:-3]))


def test_checkpoint_without_state_dict_is_refused(tmp_path):
    path = write_archive(tmp_path / "x.pt", pickle.dumps({"epoch": 1}))
    with pytest.raises(ValueError, match="x.pt lacks the key 'state_dict'"):
        load_torch_checkpoint(path)
