"""The public call: what it takes of each kind of network."""

import jax
import numpy as np
import pytest
from small_run import SECTIONS

import ghn_jax
from ghn_jax.hypernetworks.message_passing.gcn import GCN
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
    with pytest.raises(ValueError, match=r"^nonsense, train given for an architecture, expected"):
        ghn_jax.load("digits").predict(ARCHITECTURE, nonsense=3, train=False)


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
