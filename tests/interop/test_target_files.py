"""Predicted parameters as files: PyTorch's names and layouts, and exactly back."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_predictions import FOLDER, skip_for_want_of

from ghn_jax.architectures import RESNET50, VIT, Architecture, Genotype, ResNet
from ghn_jax.interop.target_files import (
    from_target_state_dict,
    load_target_params,
    save_target_params,
    to_target_state_dict,
    write_arrays,
)
from ghn_jax.sampling import SpaceConfig, sample_architecture
from ghn_jax.targets.plan import lower

RESNET = functools.partial(lower, ResNet((1, 1, 1, 2)))


def draw(plan, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(tensor.shape, np.float32) for tensor in plan.tensors]


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "plan_fn"),
    [
        ("resnet50_imagenet", lambda: lower(RESNET50, 224, 1000)),
        ("resnet50_ghn2", lambda: lower(RESNET50, 32, 10)),
        ("vit_ghn2", lambda: lower(VIT, 32, 10)),
    ],
)
def test_names_and_shapes_are_pytorchs(name, plan_fn):
    index = {entry["name"]: entry for entry in json.loads((FOLDER / "index.json").read_text())}
    if name not in index:
        skip_for_want_of(name)
    expected = {tensor["name"]: tuple(tensor["shape"]) for tensor in index[name]["tensors"]}
    plan = plan_fn()
    arrays = [np.broadcast_to(np.float32(0), tensor.shape) for tensor in plan.tensors]
    state = to_target_state_dict(plan, arrays)
    assert {key: array.shape for key, array in state.items()} == expected


def test_layouts_by_hand():
    genotype = Genotype(
        normal=(("sep_conv_3x3", 0), ("msa", 1)),
        normal_concat=(2,),
        reduce=(("sep_conv_3x3", 0), ("conv_7x1_1x7", 1)),
        reduce_concat=(2,),
    )
    plan = lower(Architecture(genotype=genotype, num_cells=4, channels=8), 32, 10)
    arrays = draw(plan)
    by_path = {"/".join(t.path): array for t, array in zip(plan.tensors, arrays, strict=True)}
    state = to_target_state_dict(plan, arrays)
    # Output 3, input 2, pixel (1, 0).
    assert state["stem0.weight"][3, 2, 1, 0] == by_path["stem/kernel"][1, 0, 2, 3]
    depthwise = state["cells.0._ops.0.op.1.weight"]
    assert depthwise.shape == (8, 1, 3, 3)
    ours = by_path["cell0_op0_first_depthwise/kernel"]
    assert depthwise[5, 0, 1, 2] == ours[1, 2, 0, 5]
    assert state["classifier.0.weight"][7, 4] == by_path["fc0/dense/kernel"][4, 7]
    position = state["pos_enc.weight"]
    assert position.shape == (1, 8, 11, 11)
    assert position[0, 6, 2, 9] == by_path["stem/position"][0, 2, 9, 6]
    for array in state.values():
        assert array.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_round_trips_are_exact(tmp_path, suffix):
    plans = [RESNET(224, 7), lower(VIT, 32, 10)]
    for split, index in (("train", 0), ("dense", 1), ("bnfree", 2)):
        plans.append(lower(sample_architecture(SpaceConfig(split=split), 0, index), 32, 10))
    for plan in plans:
        arrays = draw(plan)
        path = tmp_path / f"x{suffix}"
        save_target_params(path, plan, arrays)
        again = load_target_params(path, plan)
        for tensor, first, second in zip(plan.tensors, arrays, again, strict=True):
            assert second.dtype == np.float32 and second.shape == tensor.shape
            np.testing.assert_array_equal(first, second)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_npz_has_our_paths(tmp_path):
    plan = RESNET(32, 10)
    save_target_params(tmp_path / "x.npz", plan, draw(plan))
    with np.load(tmp_path / "x.npz") as file:
        assert file["stem_conv/kernel"].shape == (3, 3, 3, 64)
        assert file["stage3_block1_conv3_norm/scale"].shape == (2048,)
        assert len(file.files) == len(plan.tensors)


def test_state_dicts_of_pytorch_are_read():
    plan = RESNET(32, 10)
    arrays = draw(plan)
    state = to_target_state_dict(plan, arrays)
    state |= {"bn1.running_mean": np.zeros(64), "bn1.num_batches_tracked": np.array(0)}
    for first, second in zip(arrays, from_target_state_dict(plan, state), strict=True):
        np.testing.assert_array_equal(first, second)


def test_errors(tmp_path):
    plan = RESNET(32, 10)
    arrays = draw(plan)
    state = to_target_state_dict(plan, arrays)
    state["extra.weight"] = state.pop("layer1.0.conv2.weight")
    state["fc.bias"] = np.zeros(11, np.float32)
    with pytest.raises(
        ValueError,
        match=r"lacks layer1.0.conv2.weight; has the unknown extra.weight; has fc.bias of shape"
        r" \(11,\), expected \(10,\)",
    ):
        from_target_state_dict(plan, state)
    with pytest.raises(ValueError, match=r"ends in '\.pth', expected \.npz or \.safetensors"):
        save_target_params(tmp_path / "x.pth", plan, arrays)
    with pytest.raises(ValueError, match="nowhere', expected a folder that exists"):
        save_target_params(tmp_path / "nowhere" / "x.npz", plan, arrays)
    save_target_params(tmp_path / "x.npz", plan, arrays)
    with pytest.raises(ValueError, match="x.npz is of another network: fc0/dense/bias, fc0/dense"):
        load_target_params(tmp_path / "x.npz", RESNET(32, 11))


@pytest.mark.parametrize(
    ("dtype", "written"),
    [
        (jnp.bfloat16, np.float32),
        (jnp.float8_e4m3fn, np.float32),
        (jnp.float8_e5m2, np.float32),
        (jnp.float16, np.float16),
        (jnp.int4, np.int8),
        (jnp.uint4, np.uint8),
        (jnp.int32, np.int32),
        (np.dtype(">i4"), np.dtype(">i4")),
        (jnp.complex64, np.complex64),
        (jnp.bool_, np.bool_),
    ],
)
def test_npz_files_hold_numpys_dtypes_and_every_value(tmp_path, dtype, written):
    values = [0, 1, 3, 6]  # exact in all of them but bool
    values = values if dtype != jnp.bool_ else [False, True, True, False]
    write_arrays(tmp_path / "x.npz", {"a": np.asarray(values).astype(dtype)})
    with np.load(tmp_path / "x.npz") as file:
        assert file["a"].dtype == written
        assert file["a"].tolist() == values


def test_npz_files_hold_random_keys_as_integers(tmp_path):
    key = jax.random.key(5)
    write_arrays(tmp_path / "x.npz", {"key": key})
    with np.load(tmp_path / "x.npz") as file:
        assert jax.random.wrap_key_data(file["key"]) == key


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, suffix, value):
    plan = RESNET(32, 10)
    arrays = draw(plan)
    index = [tensor.path for tensor in plan.tensors].index(("fc0", "dense", "bias"))
    arrays[index][3] = value
    path = tmp_path / f"x{suffix}"
    save_target_params(path, plan, arrays)
    with pytest.raises(ValueError, match=f"^{path}: fc0/dense/bias has values that are not finite"):
        load_target_params(path, plan)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_damaged_files_are_refused_by_name(tmp_path, suffix):
    plan = RESNET(32, 10)
    path = tmp_path / f"x{suffix}"
    save_target_params(path, plan, draw(plan))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"^{path} cannot be read as a {suffix} file"):
        load_target_params(path, plan)


def test_integers_are_no_parameters(tmp_path):
    plan = RESNET(32, 10)
    save_target_params(tmp_path / "x.npz", plan, [np.zeros(t.shape, int) for t in plan.tensors])
    with pytest.raises(ValueError, match="x.npz: .* has the dtype int64, expected a floating one"):
        load_target_params(tmp_path / "x.npz", plan)
