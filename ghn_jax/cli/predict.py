"""Predict all parameters of one network, and run it.

    ghn-jax predict --ghn digits --architecture resnet50 --out resnet50.safetensors
    ghn-jax predict --ghn ghn2_cifar10.pt --architecture val/3 --deepnets data
    ghn-jax predict --ghn digits --architecture vit --images x.npy --logits y.npy

Prints the numbers of nodes, edges, tensors and parameters, and the seconds taken by the graph, the
prediction and the forward pass. `.safetensors` files have PyTorch's names and layouts, `.npz` files
our own. If PACKAGE.MODULE:FACTORY makes a Flax, Haiku or Equinox network, its graph is traced, and
whatever cannot be predicted is listed with the reason.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict

import ghn_jax
from ghn_jax.architectures import Architecture, ResNet
from ghn_jax.cli.command_line import run_program
from ghn_jax.cli.network_flags import (
    define_arguments_flag,
    define_deepnets_flag,
    define_ghn_flag,
    parse_arguments,
)
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.evaluation.architecture_specs import (
    is_factory,
    is_stored,
    make_network,
    resolve_architecture,
)
from ghn_jax.evaluation.image_files import check_images, read_images
from ghn_jax.graphs import ArchGraph
from ghn_jax.interop.target_files import (
    check_target_path,
    save_target_params,
    to_numpys_dtype,
    write_arrays,
)
from ghn_jax.pretrained import GHN
from ghn_jax.targets.network import flatten_params
from ghn_jax.targets.plan import Plan

FLAGS = flags.FLAGS
define_ghn_flag()
flags.DEFINE_string(
    "architecture",
    None,
    "Network: SPLIT/INDEX in a DeepNets-1M file (val/3), resnet50, vit, or package.module:factory.",
)
define_deepnets_flag()
flags.DEFINE_string(
    "images",
    None,
    "An .npy file of images, (B, S, S, C) float32, already normalised; S decides the network's"
    " variant, which otherwise the GHN does.",
)
flags.DEFINE_string("logits", None, "An .npy file to write the images' logits to.")
flags.DEFINE_string(
    "out", None, "An .npz or .safetensors file to write the predicted parameters to."
)
define_arguments_flag()
flags.mark_flags_as_required(["ghn", "architecture"])


def main() -> None:
    """Predict the parameters of the network that the flags name."""
    if (FLAGS.images is None) != (FLAGS.logits is None):
        raise ValueError(
            f"--images is {FLAGS.images} and --logits is {FLAGS.logits}, expected both or neither"
        )
    if FLAGS.out is not None:
        check_target_path(FLAGS.out)
    ghn = ghn_jax.load(FLAGS.ghn)
    images = None if FLAGS.images is None else _read_images(ghn)
    image_size = ghn.experiment.space.image_size if images is None else images.shape[1]
    config = ghn.config

    if is_factory(FLAGS.architecture):
        made = make_network(FLAGS.architecture)
        if not isinstance(made, Architecture | ResNet):
            predict_traced(ghn, made, images, image_size)
            return
    parse_arguments(FLAGS.arguments, is_traced=False)
    start = time.perf_counter()
    plan, graph = resolve_architecture(
        FLAGS.architecture,
        image_size,
        config.num_classes,
        config.virtual_edges,
        FLAGS.deepnets,
        ghn.experiment.space.num_channels,
    )
    seconds = time.perf_counter() - start
    _report_graph(graph, plan.num_parameters)
    _report("graph", f"{seconds:.3f} s")

    start = time.perf_counter()
    ghn.predict_plan(plan, graph)  # compiles
    compiled = time.perf_counter()
    prediction = ghn.predict_plan(plan, graph)
    seconds = time.perf_counter() - compiled
    compilation = max(compiled - start - seconds, 0.0)
    _report("prediction", f"{seconds:.3f} s, after {compilation:.3f} s of compilation")
    params = flatten_params(plan, prediction.variables["params"])
    if images is None:
        _report("forward pass", "not run, since there are no --images")
    else:
        _run(plan, params, images)
    if FLAGS.out is not None:
        save_target_params(FLAGS.out, plan, params)
        _report("wrote", FLAGS.out)


def predict_traced(ghn: GHN, network: Any, images: np.ndarray | None, image_size: int) -> None:
    """Predict a network from outside the architecture space that `ghn_jax.tracing` can describe."""
    arguments = parse_arguments(FLAGS.arguments, is_traced=True)
    if images is not None and not isinstance(network, nn.Module):
        raise ValueError(
            f"architecture {FLAGS.architecture!r} makes a {type(network).__name__}, expected a Flax"
            " linen module with --logits"
        )
    if FLAGS.out is not None and Path(FLAGS.out).suffix != ".npz":
        raise ValueError(
            f"--out is {FLAGS.out!r}, expected .npz: this network has no names in PyTorch"
        )
    inputs = jax.ShapeDtypeStruct(
        (1, image_size, image_size, ghn.experiment.space.num_channels), np.float32
    )
    start = time.perf_counter()
    prediction = ghn.predict(network, inputs if images is None else images, **arguments)
    seconds = time.perf_counter() - start
    graph, leaves = prediction.graph, flatten_dict(prediction.variables, sep="/")
    _report_graph(graph, prediction.num_parameters)
    _report("prediction", f"{seconds:.3f} s with graph and compilation")
    print(prediction.report, flush=True)
    if images is None:
        _report("forward pass", "not run, since there are no --images")
    else:
        state = [name for name in prediction.variables if name != "params"]

        def forward(variables: dict[str, Any], x: jax.Array) -> jax.Array:
            return network.apply(variables, x, mutable=state, **arguments)[0]

        start = time.perf_counter()
        logits = np.asarray(jax.jit(forward)(prediction.variables, images))
        _report("forward pass", f"{time.perf_counter() - start:.3f} s with compilation")
        _write_logits(logits)
    if FLAGS.out is not None:
        write_arrays(Path(FLAGS.out), leaves)
        _report("wrote", FLAGS.out)


def _report_graph(graph: ArchGraph, num_parameters: int) -> None:
    num_own = int((graph.distance == 1).sum())
    _report("nodes", graph.num_nodes)
    _report("edges", f"{len(graph.distance)} ({num_own} of the network, the others virtual)")
    _report("tensors", len(graph.tensors))
    _report("parameters", num_parameters)


def _read_images(ghn: GHN) -> np.ndarray:
    space = ghn.experiment.space
    images = read_images(FLAGS.images, space.num_channels)
    if is_stored(FLAGS.architecture):
        # Stored networks are made for the images of a data set, and so is the GHN.
        check_images(FLAGS.images, images, space.num_channels, space.image_size)
    return images


def _run(plan: Plan, params: list[np.ndarray], images: np.ndarray) -> None:
    engine = BlockwiseEngine()
    start = time.perf_counter()
    engine.compile_ahead([plan], images.shape[0], images.dtype, with_gradients=False)
    compiled = time.perf_counter()
    logits = np.asarray(engine.logits(plan, params, images))
    seconds = time.perf_counter() - compiled
    _report("forward pass", f"{seconds:.3f} s, after {compiled - start:.3f} s of compilation")
    _write_logits(logits)


def _write_logits(logits: np.ndarray) -> None:
    with Path(FLAGS.logits).open("wb") as file:
        np.save(file, to_numpys_dtype(logits))
    _report("wrote", FLAGS.logits)


def _report(name: str, value: object) -> None:
    print(f"{name:<12}  {value}", flush=True)


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    run_program(main, argv)
