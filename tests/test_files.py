import concurrent.futures
import json

import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.evaluate import evaluate_checkpoint
from cyclip_jax.files import (
    absolute,
    check_literal,
    remove_unfinished,
    write_atomically,
    write_json,
)


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


def test_threads_that_write_one_file_at_once_leave_all_of_one_content(tmp_path):
    path = tmp_path / "file"
    contents = ["a" * 50_000, "b" * 20_000]

    def write(content):
        for _ in range(200):
            write_atomically(path, content)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write, content) for content in contents]
        found = set()
        while not all(one.done() for one in writing):
            if path.exists():
                found.add(path.read_text())
    for one in writing:
        one.result()
    assert found <= set(contents)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_local_paths_become_absolute_and_remote_ones_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(absolute("runs/x")) == str(tmp_path / "runs" / "x")
    assert str(absolute("gs://bucket/x")) == "gs://bucket/x"


def test_json_has_null_for_what_is_not_finite(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, (float("inf"), "é")], "c": None})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [1.5, [None, "é"]], "c": None}
    assert "NaN" not in text and "é" in text


def test_a_folder_whose_name_is_no_pattern_of_itself_is_refused():
    for name in ("runs/*", "what?", "a[", "]b"):
        check_literal(f"/w/{name}/x", "--workdir")
    with pytest.raises(UserError) as error:
        check_literal("/w/lr=[1e-3]/x", "--workdir")
    assert str(error.value) == (
        "--workdir is /w/lr=[1e-3]/x, and checkpoints cannot be found again in a folder whose name "
        "has brackets, as lr=[1e-3] has; choose a name without them, such as lr=1e-3"
    )
    check_literal("/w/lr=1e-3/x", "--workdir")


def test_unfinished_files_are_removed_from_a_folder_with_brackets(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    (folder / "config.json.12.34.tmp").touch()
    remove_unfinished(folder)
    assert not list(folder.iterdir())
    remove_unfinished(tmp_path / "not there")


def test_results_that_would_go_into_a_file_are_refused_before_the_model_is_read(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(UserError, match="results is a file; name a folder for the results"):
        evaluate_checkpoint(tmp_path / "no model", output=tmp_path / "results")
