import json

import pytest

from cyclip_jax.files import absolute, write_atomically, write_json


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "folder" / "file"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert [path.name for path in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    (tmp_path / "file").mkdir()  # which no file can replace
    with pytest.raises(OSError):
        write_atomically(tmp_path / "file", "new")
    assert [path.is_dir() for path in tmp_path.iterdir()] == [True]


def test_local_paths_become_absolute_and_remote_ones_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(absolute("runs/x")) == str(tmp_path / "runs" / "x")
    assert str(absolute("gs://bucket/x")) == "gs://bucket/x"


def test_json_has_null_for_what_is_not_finite(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, (float("inf"), "é")], "c": None})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [1.5, [None, "é"]], "c": None}
    assert "NaN" not in text and "é" in text
