"""Time the original implementation on architectures of an official file; `train.py` starts this.

    PPUDA=<checkout of facebookresearch/ppuda> python benchmarks/original.py --directory ...

Run it with a Python that has torch, h5py, networkx and einops; it imports nothing from ghn_jax. It
prints "ready", then answers every line on stdin with one JSON object: the seconds per architecture
of a round over all architectures, forward and backward through the GHN-2 and the target networks,
as the original's trainer runs them. Building modules and reading graphs is not timed.
"""

import argparse
import json
import os
import sys
import time
import types
from collections.abc import Iterable


class _Anything(types.ModuleType):
    """A stand-in for modules that the original imports but does not need here."""

    __version__ = "0"
    __all__: list[str] = []

    def __getattr__(self, name: str) -> "_Anything":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name)


for _name in ("torchvision", "torchvision.models", "torchvision.transforms"):
    sys.modules[_name] = _Anything(_name)
for _name in ("matplotlib", "matplotlib.pyplot", "tqdm"):
    sys.modules.setdefault(_name, _Anything(_name))
sys.path.insert(0, os.environ["PPUDA"])

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from ppuda.deepnets1m.graph import GraphBatch  # noqa: E402
from ppuda.deepnets1m.loader import DeepNets1M  # noqa: E402
from ppuda.deepnets1m.net import Network  # noqa: E402
from ppuda.ghn.nn import GHN  # noqa: E402


def build(dataset: DeepNets1M, indices: Iterable[int]) -> tuple[GraphBatch, list[Network]]:
    """Build new graphs and networks without parameters, since the original modifies them."""
    graphs = GraphBatch([dataset[index] for index in indices])
    graphs.to_device("cpu")
    nets = [
        Network(is_imagenet_input=False, num_classes=10, light=True, **args)
        for args in graphs.net_args
    ]
    return graphs, nets


def mean_loss(nets: list[Network], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the loss that the original's trainer differentiates."""
    losses = [F.cross_entropy(net(images)[0], labels) for net in nets]
    return sum(losses) / len(nets)


def time_step(
    ghn: GHN,
    graphs: GraphBatch,
    nets: list[Network],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[float, float]:
    """Return the seconds of one step, and of its forward pass through the GHN."""
    start = time.perf_counter()
    ghn.zero_grad()
    nets = ghn(nets, graphs)
    ghn_forward = time.perf_counter() - start
    loss = mean_loss(nets, images, labels)
    loss.backward()
    return time.perf_counter() - start, ghn_forward


def time_ghn_backward(
    ghn: GHN,
    graphs: GraphBatch,
    nets: list[Network],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> float:
    """Return the seconds of pulling gradients of predicted parameters back through the GHN."""
    nets = ghn(nets, graphs)
    predicted = [p for net in nets for m in net.modules() for p in m._parameters.values()]
    predicted = [p for p in predicted if isinstance(p, torch.Tensor)]
    loss = mean_loss(nets, images, labels)
    grads = torch.autograd.grad(loss, predicted, retain_graph=True, allow_unused=True)
    used = [(p, g) for p, g in zip(predicted, grads, strict=True) if g is not None]
    start = time.perf_counter()
    torch.autograd.backward([p for p, _ in used], [g for _, g in used])
    return time.perf_counter() - start


def main() -> None:
    """Time a round for every line on stdin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--num_architectures", type=int, default=24)
    parser.add_argument("--meta_batch_size", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--fc_size", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    dataset = DeepNets1M(
        "train",
        arguments.directory,
        virtual_edges=50,
        num_ch=(arguments.channels, arguments.channels),
        fc_dim=(arguments.fc_size, arguments.fc_size),
    )
    ghn = GHN(
        max_shape=(64, 64, 11, 11),
        num_classes=10,
        hypernet="gatedgnn",
        decoder="conv",
        weight_norm=True,
        ve=True,
        layernorm=True,
        hid=32,
    )
    ghn.train()
    images = torch.randn(arguments.batch_size, 3, 32, 32)
    labels = torch.randint(0, 10, (arguments.batch_size,))
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, ghn_forward, ghn_backward = [], [], []
        for first in range(0, arguments.num_architectures, arguments.meta_batch_size):
            last = min(first + arguments.meta_batch_size, arguments.num_architectures)
            indices = range(first, last)
            total, forward = time_step(ghn, *build(dataset, indices), images, labels)
            seconds.append(total)
            ghn_forward.append(forward)
            if line.strip() == "split":
                parts = build(dataset, indices)
                ghn_backward.append(time_ghn_backward(ghn, *parts, images, labels))
        num = arguments.num_architectures
        result = {"step": sum(seconds) / num, "ghn_forward": sum(ghn_forward) / num}
        if ghn_backward:
            result["ghn_backward"] = sum(ghn_backward) / num
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
