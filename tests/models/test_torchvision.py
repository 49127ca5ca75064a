"""Networks of `ghn_jax.models` against torchvision's, with torchvision's parameters.

Needs torch and torchvision, which are no extras of this package: CONTRIBUTING says how to run it.
"""

import collections

import flax.linen as nn
import jax
import numpy as np
import pytest

from ghn_jax.models import build

pytestmark = pytest.mark.slow
NAMES = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "wide_resnet50_2": "wide_resnet50_2",
    "vit_b16": "vit_b_16",
    "convnext_t": "convnext_tiny",
    "mobilenet_v2": "mobilenet_v2",
    "efficientnet_b0": "efficientnet_b0",
    "swin_t": "swin_t",
    "vgg16_bn": "vgg16_bn",
    "densenet121": "densenet121",
}
# What parameters that belong to no layer are called on either side.
SINGLE = {
    "class_token": "class_token",
    "position": "pos_embedding",
    "layer_scale": "layer_scale",
    "position_bias": "relative_position_bias_table",
}
IMAGES = jax.ShapeDtypeStruct((4, 224, 224, 3), np.float32)


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def draw(torch, module):
    """Give every parameter and statistic its own value, such that logits differ between images."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter)
            if name.rpartition(".")[2] in SINGLE.values():
                parameter.copy_(0.5 * noise)
            elif parameter.dim() > 1:  # depthwise kernels too keep the size of activations
                parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
            elif parameter.dim() == 1 and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.2 * torch.rand_like(buffer))


def layers_of(state):
    """torchvision's layers in the order of registration, by kind, and its single parameters."""
    layers, single = {}, []
    for name, array in state.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in SINGLE.values():
            single.append((leaf, array))
        elif leaf not in ("num_batches_tracked", "relative_position_index"):
            layers.setdefault(layer, {})[leaf] = array
    queues = collections.defaultdict(collections.deque)
    for leaves in layers.values():
        if "in_proj_weight" in leaves:  # query, key and value in one
            parts = zip(
                np.split(leaves["in_proj_weight"], 3),
                np.split(leaves["in_proj_bias"], 3),
                strict=True,
            )
            queues["kernel"].extend({"weight": weight, "bias": bias} for weight, bias in parts)
        else:
            kind = "norm" if leaves["weight"].ndim == 1 else "kernel"
            queues[kind].append(leaves)
    return queues, single


def calls_of(module):
    """Paths of a Flax module's layers in the order of their first call."""
    paths = {}

    def record(call, args, kwargs, context):
        paths.setdefault(context.module.path, len(paths))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    return paths, shapes["params"]


def leaves_of(tree, path=()):
    """(path, shapes) of layers, and (path, shape) of single parameters."""
    own = {name: leaf for name, leaf in tree.items() if not isinstance(leaf, dict)}
    if own and set(own) <= {"kernel", "scale", "bias"}:
        yield path, own
    else:
        yield from (((*path, name), leaf) for name, leaf in own.items())
    for name, child in tree.items():
        if isinstance(child, dict):
            yield from leaves_of(child, (*path, name))


def translate(module, state):
    """torchvision's parameters as the variables of our module, layer by layer in order of calls."""
    calls, shapes = calls_of(module)
    queues, single = layers_of(state)
    flat: dict = {}

    def place(item):
        path, leaf = item
        return calls[path if isinstance(leaf, dict) else path[:-1]]

    for path, leaf in sorted(leaves_of(shapes), key=place):
        if not isinstance(leaf, dict):
            index = next(i for i, (name, _) in enumerate(single) if name == SINGLE[path[-1]])
            flat["params", *path] = single.pop(index)[1].reshape(leaf.shape)
        elif "scale" in leaf:
            given = queues["norm"].popleft()
            flat["params", *path, "scale"] = given["weight"]
            flat["params", *path, "bias"] = given["bias"]
            if "running_mean" in given:
                flat["batch_stats", *path, "mean"] = given["running_mean"]
                flat["batch_stats", *path, "var"] = given["running_var"]
        else:
            given = queues["kernel"].popleft()
            axes = (2, 3, 1, 0) if given["weight"].ndim == 4 else (1, 0)
            kernel = given["weight"].transpose(axes)
            flat["params", *path, "kernel"] = kernel.reshape(leaf["kernel"].shape)
            if "bias" in leaf:
                flat["params", *path, "bias"] = given["bias"].reshape(leaf["bias"].shape)
    assert not single and not any(queues.values())
    tree: dict = {}
    for path, leaf in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_torchvisions(name):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    theirs = getattr(models, NAMES[name])(num_classes=10).eval()
    draw(torch, theirs)
    images = np.random.default_rng(0).standard_normal(IMAGES.shape).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    state = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    module = build(name, 10)
    found = np.asarray(jax.jit(module.apply)(translate(module, state), images))
    centred = expected - expected.mean(0)
    deviation = np.abs(found - found.mean(0) - centred).max() / centred.std()
    print(f"{name}: {deviation:.1e} of the logits' spread between images")
    assert deviation < 1e-3
