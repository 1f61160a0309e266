"""EDA: what its four ways do to a text, and that chance is a function of the example."""

import collections

import numpy as np
import pytest
import scipy.stats

from cyclip_jax.data import eda
from cyclip_jax.data.draws import ANOTHER_CAPTION, EDA, Draws
from cyclip_jax.data.tokenizers import create_tokenizer, train_sentencepiece

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words_of(count):
    """Words of two letters, none of them a stop word."""
    return [f"{first}{second}" for first in "qxzvjk" for second in LETTERS][:count]


def synonyms(word):
    """Two for every word of two letters, one of several words; none for others."""
    return (f"{word}{word}", f"{word} {word} {word}") if len(word) == 2 else ()


def draws(index, purpose=EDA, seed=3, epoch=0):
    return Draws(seed, epoch, index, purpose)


def test_the_stop_words_are_127_and_the_empty_one():
    assert len(eda.STOP_WORDS) == 128 and "" in eda.STOP_WORDS
    assert all(word == eda.cleaned(word) for word in eda.STOP_WORDS)


def test_cleaning_leaves_words_of_letters():
    assert eda.cleaned("A dog's\tbed -- it’s  RED,\nisn't it? (3 €, naïve)") == (
        "a dogs bed its red isnt it na ve"
    )
    assert eda.cleaned("\tHi!") == "hi"


@pytest.mark.parametrize(("count", "n"), [(1, 1), (9, 1), (19, 1), (20, 2), (30, 3), (39, 3)])
def test_a_tenth_of_the_words_changes_and_at_least_one(count, n):
    words = words_of(count)

    assert eda.count_of(0.1, count) == n
    only = {"replaced": 0.0, "inserted": 0.0, "swapped": 0.0, "deleted": 0.0}
    replaced = eda.eda(" ".join(words), lambda word: ("w",), draws(0), **only | {"replaced": 0.1})
    assert replaced.split().count("w") == n
    inserted = eda.eda(" ".join(words), lambda word: ("w",), draws(0), **only | {"inserted": 0.1})
    assert inserted.split().count("w") == n
    assert eda.eda("It's a DOG!", synonyms, draws(0), **only) == "its a dog"


def test_replacement_changes_every_occurrence_of_words_that_are_no_stop_words():
    words = ["the", "qa", "qb", "the", "qa", "long", "qc"]
    changed = collections.Counter()
    for index in range(300):
        result = eda.replace_by_synonyms(words, synonyms, draws(index), 2)
        places = [i for i in range(7) if result[i] != words[i]]
        assert len({words[i] for i in places}) == 2
        assert result[1] == result[4]
        assert all(result[i] in synonyms(words[i]) for i in places)
        changed.update(result)
    assert changed["the"] == 600 and changed["long"] == 300
    for word in ("qa", "qb", "qc"):  # each of the three is one of two a time in three
        for synonym in synonyms(word):
            assert 70 < changed[synonym] / words.count(word) < 130

    assert eda.replace_by_synonyms(["the", "of"], lambda word: ("w",), draws(0), 1) == ["the", "of"]
    assert eda.replace_by_synonyms(["qa", "long"], synonyms, draws(0), 5)[1] == "long"


def test_insertion_adds_synonyms_and_none_of_them_last():
    words = ["the", "qa", "qb", "long"]
    places, all_added = collections.Counter(), set()
    for index in range(300):
        result = eda.insert_synonyms(words, lambda word: (word.upper(),), draws(index), 3)
        assert len(result) == 7 and [word for word in result if word.islower()] == words
        assert result[-1] == "long"
        places.update(i for i, word in enumerate(result) if word.isupper())
        all_added.update(result)
    assert set(places) == set(range(6)) and all_added == {*words, "THE", "QA", "QB", "LONG"}
    assert eda.insert_synonyms(["long", "the"], synonyms, draws(0), 3) == ["long", "the"]


def test_swapping_changes_two_places():
    words = words_of(6)
    pairs = collections.Counter()
    for index in range(300):
        result = eda.swap(words, draws(index), 1)
        assert sorted(result) == sorted(words)
        places = tuple(i for i in range(6) if result[i] != words[i])
        pairs[places] += 1
        assert len(places) in (0, 2)
    assert len(pairs) >= 15 and pairs[()] <= 5  # four draws fail once in 6⁴
    assert sorted(eda.swap(words, draws(0), 4)) == sorted(words)
    assert eda.swap(["one"], draws(0), 3) == ["one"]
    assert eda.swap(["one", "two"], draws(1), 1) == ["two", "one"]


def test_deletion_leaves_a_part_and_never_nothing():
    words, left = words_of(10), collections.Counter()
    for index in range(1000):
        result = eda.delete(words, draws(index), 0.1)
        places = [words.index(word) for word in result]
        assert result and places == sorted(set(places))
        left.update(result)
    assert min(left.values()) > 850 and 8900 < sum(left.values()) < 9100
    one_left = collections.Counter(
        word for index in range(300) for word in eda.delete(words, draws(index), 1.0)
    )
    assert sum(one_left.values()) == 300 and min(one_left[word] for word in words) > 10
    assert eda.delete(["one"], draws(0), 1.0) == ["one"]


def test_each_of_the_four_ways_is_as_likely_as_the_others():
    words = words_of(20)

    def way(index):
        result = eda.eda(
            " ".join(words), lambda word: ("w", "w w"), draws(index), swapped=0.05, deleted=1.0
        ).split()
        if len(result) == 1:
            return "deleted"
        if sorted(result) == sorted(words):
            return "swapped"
        return "inserted" if set(words) <= set(result) else "replaced"

    counts = collections.Counter(map(way, range(4000)))
    assert len(counts) == 4
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-4


@pytest.mark.parametrize("text", ["", " ", "😀 🎉", "一只猫坐在椅子上", "12.5 €", "’'"])
def test_a_text_without_a_latin_letter_stays_as_it_is(text):
    assert {eda.eda(text, synonyms, draws(index)) for index in range(20)} == {text}


def test_a_text_of_one_word_keeps_a_word():
    results = {eda.eda("Qa!", synonyms, draws(index)) for index in range(60)}
    assert results == {"qa", "qaqa", "qa qa qa", "qaqa qa", "qa qa qa qa"}
    assert {eda.eda("the", synonyms, draws(index)) for index in range(20)} == {"the"}


def test_a_view_that_is_too_long_for_the_context_still_ends_with_the_end_of_text(tmp_path):
    texts = [" ".join(words_of(count)) for count in range(1, 30)]
    vocabulary = str(tmp_path / "tokenizer.model")
    train_sentencepiece(texts, vocab_size=60, output=vocabulary)
    tokenize = create_tokenizer(
        "sentencepiece", vocabulary=vocabulary, vocab_size=60, context_length=8
    )
    longer = eda.insert_synonyms(words_of(7), synonyms, draws(0), 3)
    end = tokenize(["qa"])[0].max()
    tokens = tokenize([" ".join(longer)])[0]
    assert tokens[-1] == end and (tokens[:-1] != end).all()


GOLDEN_NUMBERS = [9, 0, 8, 6, 6, 8, 0, 0, 7, 8, 2, 9]
GOLDEN_UNIFORM = 0.9093742997684199
GOLDEN_TEXTS = [
    "the qb and the qc",
    "the qa and qc",
    "the qa qb qc the and",
    "the qb and qc",
    "the qaqa qb and the qc",
    "the qa qb and qa qa qa the qc",
]


def test_what_is_drawn_stays_what_it_was():
    """Golden values: a change here would change what a resumed run sees."""
    numbers = draws(7)
    assert [numbers.below(10) for _ in range(12)] == GOLDEN_NUMBERS
    assert draws(0).uniform() == GOLDEN_UNIFORM
    assert [
        eda.eda("the qa qb and the qc", synonyms, draws(index)) for index in range(6)
    ] == GOLDEN_TEXTS


def test_draws_are_even_and_differ_by_seed_epoch_example_and_purpose():
    numbers = draws(0)
    counts = np.bincount([numbers.below(7) for _ in range(7000)], minlength=7)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    uniform = np.array([numbers.uniform() for _ in range(2000)])
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-4
    firsts = {
        Draws(*key).below(1 << 60)
        for key in [(0, 0, 0, EDA), (1, 0, 0, EDA), (0, 1, 0, EDA), (0, 0, 1, EDA)]
    }
    firsts |= {
        Draws(0, 0, 0, ANOTHER_CAPTION).below(1 << 60),
        Draws(-1, -(1 << 50), 0, EDA).below(9),
    }
    assert len(firsts) == 6
