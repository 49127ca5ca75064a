"""Meta files are read piece by piece: the same entries as json reads, in bounded memory."""

import json
import tracemalloc

import pytest

from ghn_jax.deepnets1m import meta as deepnets1m_meta
from ghn_jax.deepnets1m.meta import MetaFile

TABLES = {"primitives_ext": {"0": "input", "1": "conv"}, "unique_op_names": {"0": "input"}}


def make_entry(index):
    genotype = {"normal": [["conv_1x1", 0], ["none", 1]], "normal_concat": [2]}
    return {"genotype": genotype, "n_cells": index % 20, "num_params": {"cifar10": index * 1000}}


def write(path, splits, **how):
    contents = {
        split: {"nets": [make_entry(index) for index in range(count)], "meta": TABLES}
        for split, count in splits.items()
    }
    path.write_text(json.dumps(contents, **how))
    return path


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("how", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_entries_are_those_of_json(tmp_path, monkeypatch, chunk_size, how):
    monkeypatch.setattr(deepnets1m_meta, "_CHUNK_SIZE", chunk_size)
    path = write(tmp_path / "meta.json", {"val": 2, "test": 5, "deep": 0}, **how)
    for split, count in {"test": 5, "val": 2, "deep": 0}.items():
        meta = MetaFile(path, split)
        assert len(meta) == count
        assert [meta.entry(i) for i in range(count)] == [make_entry(i) for i in range(count)]
        assert meta.tables == {
            "primitives_ext": {0: "input", 1: "conv"},
            "unique_op_names": {0: "input"},
        }


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = write(tmp_path / "meta.json", {"train": 32_000})
    size = path.stat().st_size
    assert size > 4e6
    tracemalloc.start()
    meta = MetaFile(path, "train")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(meta) == 32_000
    # 16 bytes per entry are kept, doubled while they are collected, beside some chunks of 1 MB.
    assert held < 16 * 32_000 + 2e5
    assert peak < 2 * held + 8 * deepnets1m_meta._CHUNK_SIZE
    assert meta.entry(31_999) == make_entry(31_999)


def test_order_of_keys_does_not_matter(tmp_path):
    path = tmp_path / "meta.json"
    path.write_text(
        json.dumps({"val": {"meta": TABLES, "about": [1.5, "x"], "nets": [make_entry(3)]}})
    )
    assert MetaFile(path, "val").entry(0) == make_entry(3)


def test_damaged_files_are_refused(tmp_path):
    path = write(tmp_path / "meta.json", {"val": 4})
    text = path.read_text()
    for length in (0, 1, 30, len(text) // 2, len(text) - 1):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match="meta.json is not a .* meta file, or is truncated: "):
            MetaFile(path, "val")
    path.write_text(text + "}")
    with pytest.raises(ValueError, match="is beyond the end of the object"):
        MetaFile(path, "val")
    path.write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"byte 0 is '\[', expected one of '\{'"):
        MetaFile(path, "val")
    path.write_text(json.dumps({"val": {"nets": [], "meta": {"primitives_ext": {}}}}))
    with pytest.raises(ValueError, match="has no table 'unique_op_names' of ids"):
        MetaFile(path, "val")
    path.write_text(json.dumps({"val": {"nets": []}, "test": {}}))
    with pytest.raises(ValueError, match="has no split 'deep', expected one of val, test"):
        MetaFile(path, "deep")
    path.unlink()
    with pytest.raises(ValueError, match="does not exist, expected the meta file beside"):
        MetaFile(path, "val")


@pytest.mark.parametrize("value", [None, 3, "x", [1], True])
def test_entries_that_are_no_objects_are_refused(tmp_path, value):
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"val": {"nets": [make_entry(0), value], "meta": TABLES}}))
    place = path.read_text().index("}}, ") + 4
    with pytest.raises(
        ValueError, match=rf"meta\.json is not .*: item 1 at byte {place} is .*, expected"
    ):
        MetaFile(path, "val")


@pytest.mark.parametrize(
    ("key", "name"), [("-1", "conv"), ("x", "conv"), ("70000", "conv"), ("0", None), ("0", 7)]
)
def test_tables_of_other_types_are_refused(tmp_path, key, name):
    tables = {**TABLES, "primitives_ext": {key: name}}
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"val": {"nets": [], "meta": tables}}))
    message = rf"meta\.json: table 'primitives_ext' has {name!r} under '{key}', expected a name"
    with pytest.raises(ValueError, match=message):
        MetaFile(path, "val")


def test_deep_nesting_is_refused_in_one_line(tmp_path):
    path = tmp_path / "meta.json"
    path.write_text('{"val": {"nets": [], "meta": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"meta\.json is not .* recursion") as error:
        MetaFile(path, "val")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1200


def test_entries_name_the_file_and_their_index(tmp_path):
    path = write(tmp_path / "meta.json", {"val": 3})
    meta = MetaFile(path, "val")
    path.write_bytes(path.read_bytes().replace(b"none", b'n"ne'))  # changed since it was opened
    with pytest.raises(ValueError, match=r"meta\.json: val/nets\[2\]: "):
        meta.entry(2)
