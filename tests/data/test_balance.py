"""Captions balanced over entries: what a caption has, what stays, what a killed run leaves."""

import csv
import io
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclip_jax.data import balance as module
from cyclip_jax.data.balance import Entries, drawn, found_in_dense, key_of, probabilities, spaced
from cyclip_jax.data.prepare import main
from cyclip_jax.errors import UserError
from tests.runs import start_process, status_of

WORDS = ["a", "b", "a b", "b a", "a b a", "a .", ".", "b  a", "é", "a,"]


@given(st.text(alphabet="ab .,!\n\té", max_size=20))
def test_the_entries_of_a_caption_are_those_of_the_published_rule(text):
    assert Entries(WORDS).found_in(text) == found_in_dense(text, WORDS)


def test_right_values():
    assert spaced("New York, at\tnight!") == " New York ,  at night !  "
    entries = ["new york", "york", "ew", "night", "at night", "york city"]
    assert Entries(entries).found_in("new york city, at night") == [0, 1, 3, 4, 5]
    assert Entries(entries).found_in("newyork") == []
    np.testing.assert_allclose(
        probabilities(np.array([0, 1, 20, 21, 2000]), 20), [1, 1, 1, 20 / 21, 0.01]
    )


def test_a_caption_stays_with_the_chance_that_one_of_its_entries_draws_it():
    """1 − Π(1 − p_e), within five standard deviations of 100,000 draws; and the same ones again."""
    chances = np.array([0.05, 0.3, 0.1])
    worker = module._Worker(["x", "y z", "w"], False, 0, chances)
    n, expected = 100_000, 1 - np.prod(1 - chances)
    stays = [worker.is_kept(f"{i}.jpg\0x y z w", [0, 1, 2]) for i in range(n)]
    assert abs(np.mean(stays) - expected) < 5 * np.sqrt(expected * (1 - expected) / n)
    assert stays[:100] == [worker.is_kept(f"{i}.jpg\0x y z w", [0, 1, 2]) for i in range(100)]
    other = module._Worker(["x", "y z", "w"], False, 1, chances)
    assert stays[:100] != [other.is_kept(f"{i}.jpg\0x y z w", [0, 1, 2]) for i in range(100)]


def test_draws_do_not_change():
    """Nor do they know where the data lie."""
    assert drawn(0, "a.jpg\0a dog", "dog") == 0.5171384716392154
    assert key_of("/data/here/0.tar/0001", "a") == key_of("there/0.tar/0001", "a")
    assert key_of("0.tar/0001", "a") != key_of("1.tar/0001", "a")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A CSV of 400 captions, whose words are as frequent as 1/rank, and its entries."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 41)
    numbers = rng.choice(40, (400, 2), p=chances / chances.sum())
    with open(folder / "pool.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for row, (one, other) in enumerate(numbers):
            caption = "" if row == 7 else "nothing" if row % 50 == 0 else f"Word{one}, word{other}"
            writer.writerow([f"{row}.jpg", caption])
    entries = [f"word{number}" for number in range(40)]
    (folder / "entries.txt").write_text("\n".join([*entries, "word0", "", "absent"]) + "\n")
    (folder / "entries.json").write_text(json.dumps([*entries, "absent"]))
    return folder


def run(pool, output, *flags, entries="entries.txt", limit=20, code=0):
    flags = [f"--input={pool / 'pool.csv'}", f"--output={output}", "--workers=1", *flags]
    flags += [f"--entries={pool / entries}", f"--limit={limit}"]
    assert status_of(main, ["balance", *flags]) == code
    return contents(output)


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def balanced(pool, tmp_path_factory):
    return run(pool, tmp_path_factory.mktemp("balanced"), "--lower_case")


def rows_of(files):
    return np.load(io.BytesIO(files["kept.npy"]), allow_pickle=False)


def table_of(files):
    rows = csv.DictReader(files["entries.csv"].decode().splitlines())
    return {
        row["entry"]: (int(row["count"]), float(row["probability"]), int(row["kept"]))
        for row in rows
    }


def test_the_list_is_what_the_rule_says_row_by_row(pool, balanced):
    """Counted and drawn here once more, by the definition of what a caption has."""
    manifest = json.loads(balanced["manifest.json"])
    entries = [f"word{number}" for number in range(40)] + ["absent"]
    with open(pool / "pool.csv", newline="") as file:
        rows = [(row["image"], row["caption"]) for row in csv.DictReader(file)]
    found = [found_in_dense(caption.lower(), entries) for _, caption in rows]
    counts = np.bincount(np.concatenate(found).astype(int), minlength=len(entries))
    chances = probabilities(counts, 20)
    kept = [
        row
        for row, (name, caption) in enumerate(rows)
        if any(drawn(0, key_of(name, caption), entries[e]) < chances[e] for e in found[row])
    ]
    assert 300 < len(kept) < 350
    np.testing.assert_array_equal(rows_of(balanced), kept)
    assert manifest["examples"] == len(kept) and manifest["input_examples"] == 400
    assert manifest["without_caption"] == 1 and manifest["without_entry"] == 8
    assert manifest["drawn_by_none"] == 400 - 9 - len(kept)
    assert manifest["entries_in_list"] == 41 and manifest["entries_found"] == (counts > 0).sum()
    table = table_of(balanced)
    assert "absent" not in table and next(iter(table)) == "word0"
    left = np.bincount(np.concatenate([found[row] for row in kept]), minlength=len(entries))
    for number, entry in enumerate(entries[:40]):
        if counts[number]:
            assert table[entry] == (
                counts[number],
                pytest.approx(chances[number], rel=1e-5),
                left[number],
            )


def test_a_limit_that_no_entry_reaches_keeps_all_that_have_one(pool, tmp_path):
    files = run(pool, tmp_path / "all", "--lower_case", limit=400)
    assert len(rows_of(files)) == 391
    # As the captions are written, only one of the two words is an entry.
    manifest = json.loads(run(pool, tmp_path / "as_written", limit=400)["manifest.json"])
    assert manifest["found_before"] == manifest["found_after"] == 391


def test_data_in_the_home_folder_are_found(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(pool))
    run(pool, tmp_path / "out", "--input=~/pool.csv")


def test_workers_and_blocks_change_nothing(pool, balanced, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 37)
    assert run(pool, tmp_path / "two", "--lower_case", "--workers=2") == balanced
    assert (
        run(pool, tmp_path / "json", "--lower_case", entries="entries.json")["kept.npy"]
        == balanced["kept.npy"]
    )


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 9, 14])
def test_a_killed_run_goes_on_to_the_same_bytes(pool, balanced, tmp_path, monkeypatch, after):
    """It is killed in the first pass, in the second, and before the list is written."""
    monkeypatch.setattr(module, "_BLOCK", 60)
    calls = []
    written = module.Blocks.results

    def results(self, stage, compute, *rest):
        def once(*arguments):
            calls.append(stage)
            if len(calls) > after:
                interrupted()
            return compute(*arguments)

        return written(self, stage, once, *rest)

    monkeypatch.setattr(module.Blocks, "results", results)
    if after == 14:
        monkeypatch.setattr(module, "write_kept", interrupted)
    run(pool, tmp_path / "out", "--lower_case", code=130)
    assert len(calls) == min(after + 1, 14)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_BLOCK", 60)
    assert run(pool, tmp_path / "out", "--lower_case") == balanced


def test_a_killed_worker_is_told_of(pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "_count", _end)
    run(pool, tmp_path / "out", "--workers=2", code=1)
    assert "a worker was killed" in capsys.readouterr().err


def _end(captions):
    os._exit(9)


def test_what_is_wrong_is_said_before_anything_is_counted(pool, tmp_path, capsys):
    def refused(*flags, **options):
        run(pool, tmp_path / "out", *flags, code=1, **options)
        return capsys.readouterr().err

    assert "/no.csv" in refused("--input=/no.csv")
    (pool / "empty.txt").write_text("\n\n")
    assert "has no entry" in refused(entries="empty.txt")
    (pool / "no_list.json").write_text("{}")
    assert "is no list of texts" in refused(entries="no_list.json")
    assert "cannot be read" in refused(entries="missing.txt")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    run(pool, tmp_path / "foreign", code=1)
    assert "holds other files" in capsys.readouterr().err
    run(pool, tmp_path / "begun")
    run(pool, tmp_path / "begun", "--seed=1", code=1)
    assert "--seed was 0 and is 1" in capsys.readouterr().err
    (pool / "others.txt").write_text("zebra\n")
    assert "none of the 400 captions has one of the entries" in refused(entries="others.txt")


def test_wordnet_is_a_list_of_entries():
    entries = module.read_entries("wordnet")
    assert {"dog", "ice cream", "New York"} <= set(entries) and len(entries) == len(set(entries))
    with pytest.raises(UserError, match="at least 1"):
        module.balance(module.Balance(input="x.csv", entries="wordnet", limit=0), "out")


@pytest.mark.parametrize("word, flag", [("balance", "--limit"), ("score", "--keep"), ("", "--r")])
def test_each_command_has_its_own_help(capsys, word, flag):
    assert status_of(main, [*word.split(), "--help"]) == 0
    assert flag in capsys.readouterr().out


def test_the_command_tells_what_stays(pool, tmp_path, environment):
    flags = [f"--input={pool / 'pool.csv'}", f"--entries={pool / 'entries.txt'}", "--lower_case"]
    flags += ["--limit=20", f"--output={tmp_path / 'out'}"]
    process = start_process(environment, "data.prepare", "balance", *flags)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "of 400 examples stay" in output and "--config.data.kept=" in output
    assert "8 have none of the entries" in output
