"""The documentation as a site: it builds, its code runs as it stands, what it names is there."""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from documentation import (
    FILE,
    REPOSITORY,
    code_blocks,
    commands,
    help_text,
    lone_flags,
    missing_links,
    missing_paths,
    program,
    unknown_flags,
    wrong_names,
)
from plain_composition import one_cell

import ghn_jax
from ghn_jax.cli.config_dict import build_config
from ghn_jax.data.registry import DATASETS
from ghn_jax.graphs import GraphBatch
from ghn_jax.hypernetworks.decoders import DECODERS
from ghn_jax.hypernetworks.message_passing import MESSAGE_PASSING
from ghn_jax.hypernetworks.model import make_batch
from ghn_jax.interop.locations import CHECKPOINTS
from ghn_jax.targets.graph import build_graph
from ghn_jax.tasks import TASKS

DOCS = REPOSITORY / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
needs_checkpoint = pytest.mark.skipif(
    not (CHECKPOINTS / "digits").is_dir(),
    reason="the packaged checkpoint ghn_jax/checkpoints/digits is not there",
)


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def run_blocks(page: str, names: dict[str, object]) -> str:
    """Run the Python blocks of a page one after the other; what they print.

    A block that begins with the name of a file is written to it, in the current folder.
    """
    names["__name__"] = page
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in code_blocks(read(page), "python"):
            if file := FILE.match(block):
                Path(file[1]).write_text(block, encoding="utf-8")
            else:
                exec(compile(block, page, "exec"), names)
    return printed.getvalue()


@pytest.fixture
def as_users_have_it(tmp_path, monkeypatch):
    """JAX's own rules for dtypes and ranks, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.mark.slow
def test_code_of_the_model_page_runs(as_users_have_it):
    assert len(code_blocks(read("model.md"), "python")) >= 3
    assert "Conv_0/kernel kernel (3, 3, 3, 16)" in run_blocks("model.md", {})


@needs_checkpoint
def test_code_of_get_started_runs(as_users_have_it, tmp_path):
    names: dict[str, object] = {}
    lines = run_blocks("get_started.md", names).splitlines()
    match = re.fullmatch(r"[\d,]+ predicted parameters, accuracy ([\d.]+)%", lines[0])
    assert match, lines
    assert float(match[1]) > 30  # three times chance
    # A 3x3 convolution with bias, a norm and a classifier.
    num_parameters = (3 * 3 * 3 + 1) * 16 + 2 * 16 + (16 + 1) * 10
    assert lines[1].startswith(f"{num_parameters} of {num_parameters} parameters predicted, ")
    assert (tmp_path / "graph.svg").exists()


def test_code_of_the_fine_tuning_page_runs(as_users_have_it):
    """It goes on from a prediction."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for features in (8, 8, 8, 8, 8, 8, 8):
                x = nn.relu(nn.Conv(features, (3, 3))(x))
            return nn.Dense(10)(x.mean((1, 2)))

    model = ghn_jax.Hypernetwork(ghn_jax.ghn2(hidden_size=8, max_shape=(8, 8, 3, 3)))
    images = np.zeros((2, 8, 8, 3), np.float32)
    network = Network()
    graph = ghn_jax.trace(network, images, num_classes=10, train=False).graph
    ghn = ghn_jax.GHN(model, model.init(jax.random.key(0), graph)["params"])
    names: dict = {"ghn": ghn, "model": network, "images": images}
    run_blocks("finetuning.md", names)
    changes = names["result"].changes
    assert [change.is_changed for change in changes] == [False] * 3 + [True] * 4
    np.testing.assert_allclose(changes[5].after.largest_eigenvalue, 1, rtol=1e-5)


@pytest.fixture
def as_readers_extend_it(as_users_have_it, tmp_path, monkeypatch):
    """An empty folder, from which modules are imported and forgotten, with what they register."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")  # tables in which no label is broken
    modules = set(sys.modules)
    for registry in (MESSAGE_PASSING, DECODERS, TASKS):
        monkeypatch.setattr(registry, "_modules", dict(registry._modules))
    monkeypatch.setattr(DATASETS, "_loaders", dict(DATASETS._loaders))
    yield
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.slow
def test_code_of_add_a_message_passing_runs(as_readers_extend_it):
    printed = run_blocks("add_message_passing.md", {})
    num_parameters = (3 * 3 * 3 + 1) * 16 + (16 + 1) * 10
    expected = f"{num_parameters} GIN.Config(name='gin', num_layers=3)"
    assert printed.splitlines()[-1] == expected
    config = build_config(importlib.import_module("gin_digits").get_config())
    assert config.ghn.message_passing == MESSAGE_PASSING.config("gin", num_layers=3)


def test_padding_changes_nothing_for_the_message_passing_of_the_page(as_readers_extend_it):
    (block,) = code_blocks(read("add_message_passing.md"), "python")[:1]
    names: dict[str, Any] = {"__name__": "gin"}
    exec(block, names)
    graph = build_graph(one_cell("conv_1x1", "skip_connect"), 50)
    model = ghn_jax.Hypernetwork(ghn_jax.ghn2(hidden_size=8), message_passing=names["GIN"]())
    alone = make_batch(model.config, [graph])
    larger = [np.pad(field, [(0, 1), *[(0, 3)] * (field.ndim - 1)]) for field in alone[:4]]
    larger[1] = larger[1][..., :4]  # shapes stay four numbers
    variables = model.init(jax.random.key(0), graph)
    nodes, padded = (
        model.apply(variables, batch, method="embed_nodes")
        for batch in (alone, GraphBatch(*larger))
    )
    np.testing.assert_allclose(padded[:1, : graph.num_nodes], nodes, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_code_of_add_a_decoder_runs(as_readers_extend_it):
    lines = run_blocks("add_decoder.md", {}).splitlines()
    assert lines[0] == "(3, 3, 3, 16) 2"  # a kernel of rank 2
    assert lines[-1].endswith(" LowRank.Config(name='low_rank', rank=2)")
    config = build_config(importlib.import_module("low_rank_digits").get_config())
    assert config.ghn.decoder == DECODERS.config("low_rank", rank=2)


SMALL_FLAGS = (
    *("num_devices=1", "num_steps=2", "meta_batch_size=1", "compilation_cache_dir=cache"),
    *("widths=(8,)", "fc_sizes=(16,)", "num_cells=(4,4)", "max_steps=1"),
    *("hidden_size=8", "max_shape=(8,8,7,7)", "warmup_steps=0"),
)
SECTIONS = {"widths": "space", "fc_sizes": "space", "num_cells": "space", "max_steps": "space"}
SECTIONS |= {"hidden_size": "ghn", "max_shape": "ghn", "warmup_steps": "optimizer"}


@pytest.mark.slow
def test_code_of_add_a_task_runs(as_readers_extend_it, tmp_path):
    printed = run_blocks("add_task.md", {})
    assert "distance, px" in printed and "px %" in printed
    lines = printed.splitlines()
    *_, summary, shape = (line for line in lines if re.match(r"[\d.(]", line))
    mean, best = map(float, summary.split())
    assert best < mean and shape == "(4, 2)"
    # The commands, on less.
    train, evaluate = (
        [*shlex.split(command)[1:]]
        for block in code_blocks(read("add_task.md"), "bash")
        for command in block.splitlines()
    )
    train += [f"--config.{SECTIONS.get(f.split('=')[0], 'training')}.{f}" for f in SMALL_FLAGS]
    train += ["--config.evaluation.splits=(('test', 1),)", "--config.evaluation.max_images=64"]
    evaluate += ["--split=test", "--num_architectures=1", "--workdir=again"]
    for arguments in (train, evaluate):
        arguments = [word.replace("/tmp", str(tmp_path)) for word in arguments]
        result = subprocess.run(
            [sys.executable, "-c", "from ghn_jax.cli.main import main; main()", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "distance, px" in result.stdout
    trained, again = (
        json.loads((tmp_path / folder / "evaluation" / "test.json").read_text())
        for folder in ("centre", "again")
    )
    np.testing.assert_allclose(again["distance_mean"], trained["distance_mean"], rtol=1e-4)
    assert (tmp_path / "centre" / "evaluation" / "splits.png").exists()


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    assert missing_links(read(page), DOCS) == []
    assert missing_paths(read(page)) == []
    assert wrong_names(read(page)) == []
    assert lone_flags(read(page)) == []


def our_commands() -> dict[tuple[str, ...], list[str]]:
    """Commands of all pages, by the program."""
    found: dict[tuple[str, ...], list[str]] = {}
    for page in PAGES:
        for command in commands(read(page)):
            if (arguments := program(command)) is not None:
                found.setdefault(arguments, []).append(command)
    return found


@pytest.mark.parametrize("arguments", our_commands(), ids=" ".join)
def test_commands_have_their_flags(arguments):
    for command in our_commands()[arguments]:
        assert unknown_flags(command, help_text(arguments)) == [], command
        files = re.findall(r"(?<=[ =])launch/\S+\.py", command)
        assert [path for path in files if not (REPOSITORY / path).exists()] == []


def test_training_step_names_its_files_in_the_order_of_the_way():
    paths = re.findall(r"`(ghn_jax/[\w/]+\.py)`", read("training_step.md"))
    order = list(dict.fromkeys(paths))
    stages = [
        "ghn_jax/training/run_loop.py",
        "ghn_jax/training/loop.py",
        "ghn_jax/training/architecture_sources.py",
        "ghn_jax/training/meta_batches.py",
        "ghn_jax/parallel/replica.py",
        "ghn_jax/hypernetworks/preparation.py",
        "ghn_jax/hypernetworks/embedding.py",
        "ghn_jax/hypernetworks/cutting.py",
        "ghn_jax/engine/blockwise.py",
        "ghn_jax/parallel/update.py",
    ]
    assert [path for path in order if path in stages] == stages


def test_sections_that_the_code_cites_are_there():
    sections = set(re.findall(r"^#+ (.+)$", read("method.md"), flags=re.MULTILINE))
    cited = {
        section
        for folder in ("ghn_jax", "launch", "tests")
        for path in (REPOSITORY / folder).rglob("*.py")
        for section in re.findall(r"docs/method\.md, '(\w[\w -]+)'", path.read_text("utf-8"))
    }
    assert cited and cited <= sections


def test_every_export_is_documented():
    api = read("api.md")
    documented = set(re.findall(r"^::: (\S+)", api, flags=re.MULTILINE))
    exports = {f"ghn_jax.{name}" for name in ghn_jax.__all__ if name != "__version__"}
    assert exports <= documented
    listed = re.findall(r"^::: (\S+)\n    options:\n      members: \[(.*)\]$", api, re.MULTILINE)
    assert len(listed) > 3
    documented |= {f"{module}.{name}" for module, names in listed for name in names.split(", ")}
    assert wrong_names("".join(f"`{name.rstrip('.')}` " for name in documented)) == []


def test_site_builds_without_a_warning(tmp_path):
    """Links, anchors, pages that the navigation leaves out, names of the API."""
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert 'id="ghn_jax.GHN.predict"' in api and 'id="ghn_jax.train"' in api
