"""Training on what a list keeps: which examples those are, and what is refused."""

import json

import numpy as np
import pytest

from cyclip_jax import defaults
from cyclip_jax.data import settings as configured
from cyclip_jax.data.order import examples_of_epoch
from cyclip_jax.data.sources import create_mixture, create_source
from cyclip_jax.data.sources.kept import Kept, kept_sum, open_kept, write_kept
from cyclip_jax.errors import UserError
from cyclip_jax.runtime.sections import constructed
from tests.data import shards

SIZES = (5, 9, 4, 6)
ROWS = np.array([0, 3, 4, 5, 8, 13, 18, 19, 23])


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    numbers = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    return shards.write_tars(folder, [part.tolist() for part in numbers])


def open_tars(tars):
    return create_source("webdataset", tars, config_key="config.data.train")


@pytest.fixture
def listed(tars, tmp_path):
    write_kept(tmp_path / "list", open_tars(tars), ROWS, {"why": "by hand"})
    return tmp_path / "list"


def data_of(**settings):
    config = defaults.get_config().data
    config.update(settings)
    return constructed(configured.Data, config, "config.data")


def test_a_run_sees_the_kept_examples_and_no_others(tars, listed):
    whole = open_tars(tars)
    source = configured.open_source(data_of(train=tars, kept=str(listed)), 4)
    assert len(source) == len(ROWS)
    assert source.keys(range(len(source))) == whole.keys(ROWS.tolist())
    assert source.captions() == [whole.captions()[row] for row in ROWS]
    assert source.captions(2, 5) == source.captions()[2:5]
    assert source.captions(20) == []
    assert [source.read(i) for i in range(len(source))] == [whole.read(int(row)) for row in ROWS]
    assert json.loads((listed / "manifest.json").read_text())["why"] == "by hand"


def test_runs_of_neighbours_are_those_of_the_shards(tars, listed):
    """A window of the order reads few shards at a time, as it does of the whole."""
    source = open_kept(str(listed), open_tars(tars), "config.data.kept")
    assert source.boundaries.tolist() == [0, 3, 6, 9]  # of one shard nothing is left
    order = examples_of_epoch(source, 0, 0, batch_size=3, window=3)[:, 1]
    assert sorted(order) == list(range(9))
    none_of_one = Kept(open_tars(tars), np.array([1, 2, 20]))
    assert none_of_one.boundaries.tolist() == [0, 2, 3]
    assert Kept(open_tars(tars), np.array([20, 1])).boundaries.tolist() == [0, 2]


def test_a_list_of_a_list_names_examples_of_the_data(tars, listed, tmp_path):
    source = open_kept(str(listed), open_tars(tars), "config.data.kept")
    manifest = write_kept(tmp_path / "second", source, np.array([1, 5]), {})
    assert (manifest["input_examples"], manifest["examples"]) == (sum(SIZES), 2)
    again = open_kept(str(tmp_path / "second"), open_tars(tars), "config.data.kept")
    assert again.rows.tolist() == ROWS[[1, 5]].tolist()


def test_each_part_of_a_mixture_may_follow_a_list(tars, listed):
    parts = {"all": {"train": tars}, "some": {"train": tars, "kept": str(listed)}}
    mixture = create_mixture(parts)
    assert list(map(len, mixture.sources)) == [sum(SIZES), len(ROWS)]
    assert mixture.captions(20, 28) == mixture.captions()[20:28]
    assert kept_sum(mixture) == f" {mixture.sources[1].sum}"
    assert kept_sum(create_mixture({"all": parts["all"]})) is None
    with pytest.raises(UserError, match=r"name it with its part, as part\(…, kept=FOLDER\)"):
        data_of(source="mixture", mixture=parts, kept=str(listed))
    parts["some"]["kept"] = "/nowhere"
    with pytest.raises(UserError, match=r"config\.data\.mixture\.some\.kept /nowhere holds no fin"):
        create_mixture(parts)


def test_a_list_of_other_data_is_refused(tars, listed, tmp_path):
    fewer = shards.write_tars(tmp_path / "fewer", [[1, 2, 3]])
    with pytest.raises(UserError, match="was written for 24 examples, and the data have 3"):
        open_kept(str(listed), open_tars(fewer), "config.data.kept")
    others = shards.write_tars(tmp_path / "others", [list(range(1, 25))])
    with pytest.raises(UserError, match=r"example 0 \(.*\) has another picture"):
        open_kept(str(listed), open_tars(others), "config.data.kept")
    moved = shards.write_tars(tmp_path / "moved", [list(range(24))])
    assert len(open_kept(str(listed), open_tars(moved), "config.data.kept")) == len(ROWS)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", None, "holds no finished list of kept examples"),
        ("manifest.json", b"{", "its manifest.json is another one"),
        ("manifest.json", b'{"examples": 3}', "its manifest.json is another one"),
        ("kept.npy", None, "kept.npy is damaged"),
        ("kept.npy", b"no array", "kept.npy is damaged"),
        ("kept.npy", [0, 3], "kept.npy is damaged, or not the list that its manifest.json tells"),
    ],
)
def test_a_list_that_is_not_whole_is_refused(tars, listed, file, content, message):
    if content is None:
        (listed / file).unlink()
    elif isinstance(content, bytes):
        (listed / file).write_bytes(content)
    else:
        np.save(listed / file, np.array(content))
    with pytest.raises(UserError, match=message):
        configured.open_source(data_of(train=tars, kept=str(listed)), 4)


def test_a_run_goes_on_only_with_the_list_that_it_began_with(tars, listed):
    config = defaults.get_config()
    source = open_kept(str(listed), open_tars(tars), "config.data.kept")
    meta = {"dataset_size": len(source), "kept_sum": kept_sum(source)}
    meta["config"] = {"batch_size": config.batch_size}
    configured.check_continued(config, source, meta)
    other = Kept(open_tars(tars), np.append(ROWS[:-1], 22))
    with pytest.raises(UserError, match=r"on other examples of its data than those that config\.d"):
        configured.check_continued(config, other, meta)
    older = {name: value for name, value in meta.items() if name != "kept_sum"}
    configured.check_continued(config, open_tars(tars), older | {"dataset_size": 24})
