"""A vocabulary that meets weights is the one that they were trained with."""

import shutil

import ml_collections
import pytest

from cyclip_jax.data.settings import open_tokenizer
from cyclip_jax.data.tokenizers import (
    CLIP_SUM,
    create_tokenizer,
    train_sentencepiece,
    vocabulary_sum,
)
from cyclip_jax.errors import UserError
from cyclip_jax.export import export_checkpoint
from cyclip_jax.interop import pretrained
from cyclip_jax.training import starting_point as start
from cyclip_jax.training.settings import checked
from tests import tiny
from tests.interop.models import TEXT, VIT, drawn_checkpoint

SIZES = {"vocab_size": TEXT["vocab_size"], "context_length": TEXT["context_length"]}


@pytest.fixture
def two(tmp_path):
    """Paths of two vocabularies, of as many pieces and of other words."""
    texts = {"theirs": ["a red ring", "a blue disc"], "other": ["one fast horse", "two slow cows"]}
    return {
        name: train_sentencepiece(lines, vocab_size=30, output=str(tmp_path / f"{name}.model"))
        for name, lines in texts.items()
    }


def opened(path):
    return create_tokenizer("sentencepiece", vocabulary=path, **SIZES)


def trained_with(path):
    return drawn_checkpoint(VIT, {"tokenizer": "sentencepiece", "vocabulary": path})


def config_of(vocabulary=None):
    config = tiny.get_config()
    config.init_from = "weights"
    config.data.vocabulary = vocabulary
    return config


def test_the_vocabulary_of_an_aborted_attempt_is_refused_with_what_to_remove(two):
    with pytest.raises(UserError, match=r"other\.model is not the vocab.* remove .*other\.model"):
        start.check_given_vocabulary(config_of(), trained_with(two["theirs"]), opened(two["other"]))
    start.check_given_vocabulary(config_of(), trained_with(two["theirs"]), opened(two["theirs"]))


def test_a_named_vocabulary_of_other_weights_is_refused(two):
    config = config_of(two["other"])
    with pytest.raises(UserError, match=r"theirs\.model; leave out config\.data\.vocabulary"):
        start.check_given_vocabulary(config, trained_with(two["theirs"]), opened(two["other"]))


def test_a_left_vocabulary_is_not_given_to_weights_that_name_none(two):
    checkpoint = drawn_checkpoint(VIT, None)
    with pytest.raises(UserError, match="has no vocabulary of the tokenizer 'sentencepiece'"):
        start.check_given_vocabulary(config_of(), checkpoint, opened(two["other"]))
    start.check_given_vocabulary(config_of(two["other"]), checkpoint, opened(two["other"]))


def test_a_run_goes_on_with_the_vocabulary_of_its_checkpoint_alone(two, tmp_path):
    config = config_of(two["theirs"]).to_dict()
    for meta in ({}, {"vocabulary_sum": vocabulary_sum("sentencepiece", two["theirs"])}):
        meta["config"] = config
        start.check_continued_vocabulary(meta, opened(two["theirs"]), tmp_path)
        with pytest.raises(UserError, match=r"other\.model is not .*theirs\.model"):
            start.check_continued_vocabulary(meta, opened(two["other"]), tmp_path)


class Captions:
    """A source that has nothing but captions."""

    def __init__(self, *captions):
        self.captions = lambda: list(captions)


def opened_in(workdir, source, **how):
    return open_tokenizer(checked(config_with_data()).data, workdir, SIZES, source, **how)


def config_with_data():
    config = tiny.get_config()
    config.data.train = "train.csv"
    return config


def test_a_vocabulary_of_an_aborted_attempt_is_taken_for_the_same_captions_alone(tmp_path):
    one, other = Captions("a red ring", "a blue disc"), Captions("one fast horse", "two slow cows")
    first = opened_in(tmp_path, one, is_new=True)
    assert opened_in(tmp_path, one, is_new=True).vocabulary_sum == first.vocabulary_sum
    before = (tmp_path / "tokenizer.model").read_bytes()
    with pytest.raises(UserError, match=r"tokenizer\.model .*other captions.*: remove it, and the"):
        opened_in(tmp_path, other, is_new=True)
    with pytest.raises(UserError, match="another vocab_size"):
        data = checked(config_with_data()).data
        open_tokenizer(data, tmp_path, SIZES | {"vocab_size": 64}, one, is_new=True)
    assert (tmp_path / "tokenizer.model").read_bytes() == before
    assert opened_in(tmp_path, other).vocabulary_sum == first.vocabulary_sum  # checkpoints need it
    (tmp_path / "tokenizer.model").unlink()
    assert opened_in(tmp_path, other, is_new=True).vocabulary_sum != first.vocabulary_sum


def test_a_vocabulary_of_unknown_origin_is_taken_and_said(two, tmp_path, caplog):
    shutil.copy(two["other"], tmp_path / "tokenizer.model")
    with caplog.at_level("WARNING"):
        tokenizer = opened_in(tmp_path, Captions("a red ring"), is_new=True)
    assert tokenizer.vocabulary_sum == opened(two["other"]).vocabulary_sum
    assert "tokenizer.model was there before this run and is its vocabulary" in caplog.text


def test_an_export_whose_vocabulary_was_replaced_is_refused(two, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pretrained, "open_checkpoint", lambda path, **of: trained_with(two["theirs"])
    )
    export_checkpoint("run", export_format="open_clip", output=tmp_path / "export")
    monkeypatch.undo()
    pretrained.load(tmp_path / "export")
    with open(two["other"], "rb") as file:
        (tmp_path / "export" / "tokenizer.model").write_bytes(file.read())
    with pytest.raises(UserError, match="which is the earlier content of that file; bring back"):
        pretrained.load(tmp_path / "export")


def test_clips_own_vocabulary_is_known_without_its_package():
    tokenizer = create_tokenizer("clip_bpe", vocab_size=49408, context_length=77)
    assert tokenizer.vocabulary_sum == vocabulary_sum("clip_bpe", None) == CLIP_SUM


def test_a_config_may_name_the_file_of_clips_vocabulary():
    checkpoint = drawn_checkpoint(VIT, {"tokenizer": "clip_bpe", "vocabulary": None})
    config = ml_collections.ConfigDict(tiny.get_config().to_dict())
    config.data.tokenizer, config.data.vocabulary = "clip_bpe", "bpe.txt.gz"
    assert pretrained.described_by(checkpoint, config).data.vocabulary == "bpe.txt.gz"


def test_a_checkpoint_in_a_workdir_is_named_by_its_folder(tmp_path):
    (tmp_path / "checkpoints" / "60").mkdir(parents=True)
    folder = tmp_path / "checkpoints"
    assert pretrained.workdir_and_step(folder / "60", None) == (tmp_path, 60)
    assert pretrained.workdir_and_step(folder, 20) == (tmp_path, 20)
    assert pretrained.workdir_and_step(tmp_path, None) == (tmp_path, None)
    with pytest.raises(UserError, match="is the checkpoint of step 60; leave out the step 20"):
        pretrained.workdir_and_step(folder / "60", 20)
