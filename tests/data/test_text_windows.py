"""Texts that are longer than a model's context."""

import numpy as np
import pytest

from cyclip_jax.data.text_windows import OVERLAP, WindowedTokenizer
from cyclip_jax.data.tokenizers import create_tokenizer

TEXT = "a photo of seven small black cats that sleep on the roof of an old red barn at noon"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def tokenizer():
    return create_tokenizer("clip_bpe", vocab_size=49408, context_length=12)


def test_windows_cover_the_text_and_overlap(tokenizer):
    (ids,) = tokenizer.whole_ids(TEXT)
    assert len(ids) == len(WORDS) == 19
    (windows,) = WindowedTokenizer(tokenizer)(TEXT)
    start, end = 49406, 49407
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows[0], [start, *ids[:10], end])
    np.testing.assert_array_equal(windows[1], [start, *ids[5:15], end])
    np.testing.assert_array_equal(windows[2], [start, *ids[10:], end, 0])
    assert len(windows) == 3 and OVERLAP == 5


@pytest.mark.parametrize(
    "words, windows", [(0, 1), (1, 1), (10, 1), (11, 2), (15, 2), (16, 3), (19, 3)]
)
def test_there_are_as_many_windows_as_the_text_needs(tokenizer, words, windows):
    tokens = WindowedTokenizer(tokenizer)([" ".join(WORDS[:words])])
    assert tokens.shape == (1, windows, 12)
    if windows == 1:
        np.testing.assert_array_equal(tokens[:, 0], tokenizer([" ".join(WORDS[:words])]))


def test_windows_of_77_tokens_begin_70_apart(tokenizer):
    wide = create_tokenizer("clip_bpe", vocab_size=49408, context_length=77)
    text = " ".join(WORDS * 10)
    (ids,) = wide.whole_ids(text)
    (windows,) = WindowedTokenizer(wide)(text)
    assert len(windows) == 3
    np.testing.assert_array_equal(windows[1, 1:76], ids[70:145])


def test_texts_of_different_lengths_share_an_array(tokenizer):
    tokens = WindowedTokenizer(tokenizer)(["a cat", TEXT])
    assert tokens.shape == (2, 3, 12)
    assert not tokens[0, 1:].any() and tokens[1].any(axis=-1).all()
    assert WindowedTokenizer(tokenizer)([]).shape == (0, 1, 12)


def test_sentencepiece_cuts_nothing_either(tmp_path, pairs_csv):
    from cyclip_jax.data.tokenizers import train_sentencepiece

    model = train_sentencepiece(
        ["a red disc", "a blue bar"] * 9, vocab_size=40, output=str(tmp_path / "t.model")
    )
    tokenizer = create_tokenizer("sentencepiece", vocab_size=40, context_length=8, vocabulary=model)
    text = "a red disc " * 9
    (ids,) = tokenizer.whole_ids(text)
    (windows,) = WindowedTokenizer(tokenizer)(text)
    assert len(ids) > 20
    found = [*windows[0, 1:7], *(id_ for row in windows[1:] for id_ in row[6:7])]
    assert found[: len(ids)] == ids[: len(found)]
