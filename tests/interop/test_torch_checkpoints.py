"""Translating official checkpoints: layouts by hand, and what is refused."""

import pickle
import zipfile

import jax
import numpy as np
import pytest
from reference_predictions import LOCAL, find_reference

from ghn_jax.hypernetworks import GHNConfig, ghn1, ghn2, mlp, parameter_shapes
from ghn_jax.interop.torch_checkpoints import (
    convert_config,
    convert_state_dict,
    load_torch_checkpoint,
    to_official_config,
    to_state_dict,
)
from ghn_jax.interop.torch_files import read_torch_file
from ghn_jax.interop.torch_writer import write_torch_file


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


def test_all_wrong_tensors_are_named():
    state = dict(read_torch_file(LOCAL / "ghn1.pt")["state_dict"])
    state["gnn.mlp_ve.fc.0.weight"] = state.pop("embed.weight")
    state["gnn.gru.bias_ih"] = np.zeros(25, np.float32)
    state["gnn.gru.bias_hh"] = np.zeros(24, np.int64)
    state["decoder.fc.0.bias"] = [1.0]
    config = ghn1(hidden_size=8, max_shape=(16, 16, 11, 11))
    with pytest.raises(ValueError) as error:
        convert_state_dict(state, config)
    for part in (
        "state_dict lacks embed.weight and has the unknown gnn.mlp_ve.fc.0.weight and has ",
        "gnn.gru.bias_ih of shape (25,), expected (24,)",
        "gnn.gru.bias_hh of dtype int64, expected a floating one",
        "decoder.fc.0.bias of type list, expected a tensor",
        f"these are not the tensors of {config}",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="state_dict is a list, expected a mapping"):
        convert_state_dict([], config)


def test_a_checkpoint_of_another_max_shape_is_refused(tmp_path):
    contents = read_torch_file(LOCAL / "ghn1.pt")
    contents["config"]["max_shape"] = (16, 16, 7, 7)
    write_torch_file(tmp_path / "x.pt", contents)
    with pytest.raises(
        ValueError,
        match=r"checkpoint .*x\.pt: state_dict has .*decoder\.fc\.0\.weight of shape \(3872, 8\),"
        r" expected \(1568, 8\); .*max_shape=\(16, 16, 7, 7\)",
    ):
        load_torch_checkpoint(tmp_path / "x.pt")


def test_what_the_originals_training_saves_is_read(tmp_path):
    """Its files also hold the state of Adam, under a misspelt key."""
    contents = read_torch_file(LOCAL / "ghn1.pt")
    state = {0: {"step": np.array(7.0, np.float32), "exp_avg": np.zeros((15, 8), np.float32)}}
    groups = [{"lr": 0.001, "betas": (0.9, 0.999), "amsgrad": False, "params": [0]}]
    contents["optimzer"] = {"state": state, "param_groups": groups}
    write_torch_file(tmp_path / "x.pt", contents)
    found, expected = (load_torch_checkpoint(p) for p in (tmp_path / "x.pt", LOCAL / "ghn1.pt"))
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)


def test_layouts_invert_each_other():
    decoders = ({"decoder": "conv"}, {"decoder": "mlp", "max_shape": (6, 6, 5, 5)})
    for make in (ghn1, ghn2, mlp):
        for decoder in decoders:
            config = make(**{"hidden_size": 8, "max_shape": (6, 4, 5, 5), **decoder})
            variables = {"params": jax.tree.map(_count_up, parameter_shapes(config)["params"])}
            state = to_state_dict(variables, config)
            again = convert_state_dict(state, config)
            jax.tree.map(np.testing.assert_array_equal, variables, again)
            assert convert_config(to_official_config(config)) == config


def _count_up(like):
    return np.arange(like.size, dtype=np.float32).reshape(like.shape)


def test_hypernetworks_the_original_has_not_are_refused(tmp_path):
    with pytest.raises(ValueError, match="virtual_edges is 20, expected 1 or 50"):
        to_official_config(ghn2(virtual_edges=20))


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


def test_checkpoint_without_state_dict_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"epoch": 1}))
    with pytest.raises(ValueError, match="x.pt lacks the key 'state_dict'"):
        load_torch_checkpoint(path)


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, 1e39, -1e300], ids=["nan", "inf", "-inf", "1e39", "-1e300"]
)
def test_values_that_no_finite_float32_holds_are_refused(tmp_path, value):
    contents = read_torch_file(LOCAL / "ghn1.pt")
    tensor = contents["state_dict"]["embed.weight"].astype(np.float64)
    tensor[3, 2] = value
    contents["state_dict"]["embed.weight"] = tensor
    write_torch_file(tmp_path / "x.pt", contents)
    message = r"x\.pt: state_dict has embed.weight with values that no finite float32 holds; these"
    with pytest.raises(ValueError, match=message):
        load_torch_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("epoch", -1, "epoch is -1, expected an int of at least 0"),
        ("epoch", 2**40, "epoch is 1099511627776, expected at most 2147483647"),
        ("max_shape", 5, "max_shape is 5, expected a sequence"),
        ("max_shape", (64, 10**9, 3, 3), r"max_shape\[1\] is 1000000000, expected at most 8192"),
        ("max_shape", (8192, 8192, 99, 99), "max_shape in elements is 657733976064, expected at"),
        ("num_classes", 10**12, "num_classes is 1000000000000, expected at most 1000000"),
        ("num_classes", "10", "num_classes is '10', expected a positive int"),
        ("hid", 10**6, "hidden_size is 1000000, expected at most 8192"),
        ("ve", 1, "ve is 1, expected True or False"),
        ("layernorm", [], r"layernorm is \[\], expected True or False"),
        ("hypernet", {}, r"hypernet is \{\}, expected 'gatedgnn', 'mlp'"),
        ("decoder", [[]], r"name is \[\[\]\], expected one of conv, "),
        ("state_dict", {1: 2}, "state_dict has the name 1, expected a str"),
        ("config", None, "config is None, expected a mapping"),
    ],
)
def test_every_value_of_a_file_is_checked(tmp_path, place, value, message):
    contents = read_torch_file(LOCAL / "ghn1.pt")
    (contents if place in ("epoch", "state_dict", "config") else contents["config"])[place] = value
    write_torch_file(tmp_path / "x.pt", contents)
    with pytest.raises(ValueError, match=rf"^checkpoint {tmp_path}/x\.pt: {message}"):
        load_torch_checkpoint(tmp_path / "x.pt")
