"""The fuzzer finds planted faults, and finds them again; none is left that a minute finds."""

import sys

import pytest

from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz import data
from benchmarks.fuzz.damage import Case
from cyclip_jax.data.sources.table import CsvSource
from cyclip_jax.data.tables import Table
from cyclip_jax.evals.data import pairs


@pytest.fixture
def whole_table(monkeypatch):
    """Lets the fuzzer judge a whole table, read by one of the readers."""

    def judged(reader):
        rows = [f"{data.name_of(n)},{data.caption(n)}" for n in range(data.EXAMPLES)]
        files = data.pictures() | {"a.csv": "\n".join(["image,caption", *rows]).encode()}
        arguments = {"path": "a.csv"} | ({"way": "read"} if reader == "source" else {})
        case = Case(files, (reader, arguments))
        monkeypatch.setattr(fuzz, "case_of", lambda *_: case)
        return fuzz.judge("csv", 0, 0)

    return judged


@pytest.mark.parametrize("file_format", ["tar", "csv", "json", "png", "picture"])
def test_the_case_of_a_number_is_always_the_same(file_format):
    first, again, other = (fuzz.case_of(file_format, 7, i) for i in (3, 3, 4))
    assert first == again != other
    assert fuzz.case_of(file_format, 8, 3) != first


def test_marks_survive_small_damage_and_become_no_others():
    for number in range(data.EXAMPLES):
        assert data.number_in(data.caption(number)) == number
    assert data.number_in("k01 k01 kite k02 k01 k01") == -1
    assert data.number_in("k01 k01 k01") == -1


@pytest.mark.parametrize("reader", ["source", "pairs"])
def test_a_whole_table_is_read(whole_table, reader):
    assert whole_table(reader)["outcome"] == "read"


def test_a_picture_with_anothers_caption_is_found(whole_table, monkeypatch):
    read = CsvSource.read

    def glued(source, index):
        return read(source, index)._replace(image=read(source, (index + 1) % 8).image)

    monkeypatch.setattr(CsvSource, "read", glued)
    for reader in ("source", "pairs"):
        assert whole_table(reader)["outcome"] == "glued"


def test_a_bug_is_found_with_its_place(whole_table, monkeypatch):
    monkeypatch.setattr(pairs, "distinct", lambda values: {}["x"])
    result = whole_table("pairs")
    assert (result["outcome"], result["place"]) == ("traceback", "KeyError pairs.py:_read_pairs")


def test_a_row_that_is_swallowed_is_found(whole_table, monkeypatch):
    rows = Table.rows
    monkeypatch.setattr(Table, "rows", lambda table: list(rows(table))[1:])
    result = whole_table("source")
    assert result["outcome"] == "lost" and "[0] were neither read nor named" in result["detail"]


def test_what_takes_too_long_is_found(whole_table, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.0)
    assert whole_table("pairs")["outcome"] == "slow"


WORKER = """
import json, os, signal, sys
for line in sys.stdin:
    kind = line.split()[0]
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGSEGV)
    held = bytearray(64 << 20) if kind == "memory" else b""
    if kind in ("memory", "slow"):
        signal.pause()
    print(json.dumps({"outcome": "read"}), flush=True)
"""


@pytest.mark.parametrize("outcome", ["read", "killed", "memory", "slow"])
def test_the_watching_process_sees_what_becomes_of_the_other(monkeypatch, outcome):
    monkeypatch.setattr(fuzz, "WORK", (sys.executable, "-S", "-c", WORKER))
    worker = fuzz.Worker()
    try:
        seconds = 0.3 if outcome == "slow" else 60
        result = worker.ask(outcome, 0, 0, seconds=seconds, more_bytes=32 << 20)
        assert result["outcome"] == outcome
        if outcome == "killed":
            assert result["place"] == "SIGSEGV"
    finally:
        worker.close()


def test_a_case_at_fault_is_kept_with_the_command_that_replays_it(tmp_path, monkeypatch, capsys):
    found = {"outcome": "glued", "place": "x", "detail": "told"}
    fuzzer = fuzz.Fuzzer(["csv"], 5, tmp_path)
    for index in range(1, 6):
        fuzzer._keep("csv", index, found)
    assert len(list(tmp_path.iterdir())) == fuzz.KEPT_OF_A_PLACE
    folder = tmp_path / "csv-5-2"
    assert (folder / "replay.sh").read_text().endswith("--format=csv --seed=5 --case=2\n")
    case = fuzz.case_of("csv", 5, 2)
    assert all((folder / "input" / n).read_bytes() == data for n, data in case.files.items())
    monkeypatch.setattr(fuzz, "judge", lambda *case: found | {"case": case})
    assert fuzz.main(["--format=csv", "--seed=5", "--case=2"]) == 1
    assert "glued x" in capsys.readouterr().out


@pytest.mark.slow
def test_a_minute_finds_nothing(tmp_path):
    assert fuzz.main(["--minutes=1", f"--output={tmp_path}"]) == 0
