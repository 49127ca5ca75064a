"""The public call: what it takes of each kind of network."""

import dataclasses
import json
import re
import shutil
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from small_run import SECTIONS

import ghn_jax
from ghn_jax.hypernetworks.message_passing.gcn import GCN
from ghn_jax.interop.locations import CHECKPOINTS
from ghn_jax.training.config import ExperimentConfig

CELL = (("conv_3x3", 0), ("conv_1x1", 1))
GENOTYPE = ghn_jax.Genotype(normal=CELL, normal_concat=(2,), reduce=CELL, reduce_concat=(2,))
ARCHITECTURE = ghn_jax.Architecture(GENOTYPE, num_cells=4, channels=16)


def test_an_architecture_takes_an_image_size_in_either_way():
    ghn = ghn_jax.load("digits")
    by_place, by_name = ghn.predict(ARCHITECTURE, 12), ghn.predict(ARCHITECTURE, image_size=12)
    assert by_place.network.plan.image_size == by_name.network.plan.image_size == 12
    assert ghn.predict(ARCHITECTURE, strict=True).network.plan.image_size == 8


def test_an_architecture_takes_nothing_else():
    ghn = ghn_jax.load("digits")
    with pytest.raises(ValueError, match=r"^nonsense, train given for an architecture, expected"):
        ghn.predict(ARCHITECTURE, nonsense=3, train=False)
    with pytest.raises(ValueError, match="^key given for an architecture, expected image_size"):
        ghn.predict(ARCHITECTURE, key=jax.random.key(0))
    with pytest.raises(ValueError, match="^images is 8 and image_size is 12, expected one of them"):
        ghn.predict(ARCHITECTURE, 8, image_size=12)
    with pytest.raises(ValueError, match=r"^images is an array of shape \(2, 8, 8, 3\) and dtype"):
        ghn.predict(ARCHITECTURE, np.zeros((2, 8, 8, 3), np.float32))
    for size in (0, -8, 8.0, True, "8"):
        with pytest.raises(ValueError, match=f"^image_size is {size!r}, expected a positive int"):
            ghn.predict(ARCHITECTURE, image_size=size)
    with pytest.raises(ValueError, match="^strict is 1, expected True or False"):
        ghn.predict(ARCHITECTURE, strict=1)


def test_a_checkpoint_that_does_not_fit_its_config_is_refused(tmp_path):
    shutil.copytree(CHECKPOINTS / "digits", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "0"
    path = folder / "run" / "metadata"
    run = json.loads(path.read_text())
    run["config"]["ghn"]["hidden_size"] = 64
    path.write_text(json.dumps(run))
    message = rf"^ghn_params of {folder} does not fit: .* has shape \(.*\) and dtype float32"
    with pytest.raises(ValueError, match=message):
        ghn_jax.load(tmp_path / "run")


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dense(10)(x.mean((1, 2)))


def test_any_other_network_needs_a_module_and_images():
    ghn = ghn_jax.load("digits")
    images = np.zeros((2, 8, 8, 3), np.float32)
    for network, text in (
        ("resnet50", "network is 'resnet50', expected a Flax, NNX or Equinox module"),
        (Network, r"network is <class '.*Network'>, expected an instance, not the class"),
        (lambda params, x: x, "params is missing: <function .* is a function, which"),
    ):
        with pytest.raises(ValueError, match=f"^{text}"):
            ghn.predict(network, images)
    for given, text in (
        (None, "images is missing, expected a batch of images or its shape for Network"),
        ((2, 8, 8, -3), "images has a leaf 2, expected arrays with a batch axis"),
        (np.zeros(()), "images has a leaf array(0.), expected arrays with a batch axis"),
        ({}, "images is {}, expected arrays or their shapes"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
            ghn.predict(Network(), given)
    with pytest.raises(ValueError, match="^key is 3, expected a key of jax.random.key"):
        ghn.predict(Network(), images, key=3)
    with pytest.raises(ValueError, match="^strict is 'no', expected True or False"):
        ghn.predict(Network(), images, strict="no")
    with pytest.raises(TypeError, match="unexpected keyword argument 'trian'"):
        ghn.predict(Network(), images, trian=False)


def test_tracing_takes_positive_numbers():
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)
    for name in ("num_classes", "max_distance"):
        with pytest.raises(ValueError, match=f"^{name} is 0, expected a positive int"):
            ghn_jax.trace(Network(), images, **{name: 0})


def test_what_a_ghn_is_made_of():
    ghn = ghn_jax.load("digits")
    with pytest.raises(ValueError, match="^model is 'ghn2', expected a Hypernetwork or a GHNConf"):
        ghn_jax.GHN("ghn2", ghn.ghn_params)
    with pytest.raises(ValueError, match=r"^ghn_params is 3, expected a mapping with keys \['emb"):
        ghn_jax.GHN(ghn.config, 3)
    with pytest.raises(ValueError, match=r"^ghn_params has \['params'\], expected \['embedding'"):
        ghn_jax.GHN(ghn.config, {"params": ghn.ghn_params})
    with pytest.raises(ValueError, match="^experiment is {}, expected an ExperimentConfig"):
        ghn_jax.GHN(ghn.config, ghn.ghn_params, {})
    other = dataclasses.replace(ghn.experiment, ghn=ghn_jax.ghn2(num_classes=10))
    with pytest.raises(ValueError, match="^experiment has GHNConfig.*, expected the model's GHNC"):
        ghn_jax.GHN(ghn.config, ghn.ghn_params, other)


def test_what_is_loaded_and_taken_out_of_a_run():
    ghn, other = ghn_jax.load("digits"), ghn_jax.Hypernetwork(ghn_jax.ghn2())
    for path in (3, None):
        for call in (ghn_jax.load, ghn.save):
            with pytest.raises(ValueError, match=f"^path is {path}, expected a path, as a str"):
                call(path)
    with pytest.raises(ValueError, match="^model is GHNConfig.*, expected a Hypernetwork$"):
        ghn_jax.load("digits", model=ghn.config)
    with pytest.raises(ValueError, match="^model has GHNConfig.*, expected the run's GHNConfig"):
        ghn_jax.load("digits", model=other)
    state = types.SimpleNamespace(ghn_params=ghn.ghn_params)
    again = ghn_jax.GHN.from_state(state, ghn.experiment)
    jax.tree.map(np.testing.assert_array_equal, again.ghn_params, ghn.ghn_params)
    with pytest.raises(ValueError, match="^state is None, expected the state of a run"):
        ghn_jax.GHN.from_state(None, ghn.experiment)
    with pytest.raises(ValueError, match="^experiment is GHNConfig.*, expected an ExperimentConf"):
        ghn_jax.GHN.from_state(state, ghn.config)
    with pytest.raises(ValueError, match="^model has GHNConfig.*, expected the run's GHNConfig"):
        ghn_jax.GHN.from_state(state, ghn.experiment, other)


def test_saves_what_it_loads_again(tmp_path):
    ghn = ghn_jax.load("digits")
    ghn.save(tmp_path / "run")
    again = ghn_jax.load(tmp_path / "run")
    assert again.experiment == ghn.experiment
    jax.tree.map(np.testing.assert_array_equal, again.ghn_params, ghn.ghn_params)
    with pytest.raises(ValueError, match="run exists, expected a new or empty folder$"):
        ghn.save(tmp_path / "run")


def test_a_model_of_ones_own_trains_saves_and_loads(tmp_path):
    training = {"num_steps": 2, "meta_batch_size": 2, "checkpoint_every": 2, "max_nodes": None}
    experiment = ExperimentConfig.from_dict({**SECTIONS, "training": training})
    model = ghn_jax.Hypernetwork(experiment.ghn, message_passing=GCN(num_layers=1))
    trainer, state = ghn_jax.train(experiment, tmp_path / "run", model=model)
    assert state.step == experiment.training.num_steps
    ghn = ghn_jax.GHN.from_state(state, experiment, model)
    loaded = ghn_jax.load(tmp_path / "run", model=model)
    jax.tree.map(np.testing.assert_array_equal, loaded.ghn_params, ghn.ghn_params)
    first = trainer.init_state().ghn_params["message_passing"]["layer_1"]["kernel"]
    assert np.any(loaded.ghn_params["message_passing"]["layer_1"]["kernel"] != np.asarray(first))
    with pytest.raises(ValueError, match=r"has \['embedding', 'kernels', 'message_passing'"):
        ghn_jax.load(tmp_path / "run")
    with pytest.raises(ValueError, match="^model is one of"):
        ghn_jax.train(experiment, tmp_path / "other", model=ghn_jax.Hypernetwork(ghn_jax.ghn2()))


def test_everything_the_readme_names_is_reachable():
    assert callable(ghn_jax.models.build) and callable(ghn_jax.tracing.trace)
    for name in ghn_jax.__all__:
        assert getattr(ghn_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ghn_jax.nonsense  # noqa: B018
