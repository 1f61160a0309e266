"""Sentences for the text tower: read from files, and handed out by the step."""

import json

import numpy as np
import pytest

from cyclip_jax.data.glosses import glosses
from cyclip_jax.data.order import sentences_of_step
from cyclip_jax.data.sentences import (
    CAPTIONS,
    SentenceBatches,
    check_enough,
    is_supervised,
    read_sentences,
)
from cyclip_jax.errors import UserError

TRIPLETS = "sent0,sent1,hard_neg\na dog runs,an animal moves,nothing moves\nb,c,d\n"


def read(train, columns=1, max_bad_share=0.0, captions=()):
    return read_sentences(
        str(train),
        columns,
        captions=lambda: list(captions),
        wordnet=lambda: glosses(None),
        max_bad_share=max_bad_share,
    )


def rows_of(sentences):
    return [tuple(column[row] for column in sentences.columns) for row in range(len(sentences))]


def written(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_text_file_has_a_sentence_a_line(tmp_path):
    text = 'One "quoted, sentence.\r\nTwo\twords.\n  Drei Größen  \n'
    sentences = read(written(tmp_path / "wiki.txt", "\ufeff" + text))
    assert rows_of(sentences) == [('One "quoted, sentence.',), ("Two\twords.",), ("Drei Größen",)]


@pytest.mark.parametrize(
    "columns, expected",
    [
        (3, [("a dog runs", "an animal moves", "nothing moves"), ("b", "c", "d")]),
        (2, [("a dog runs", "an animal moves"), ("b", "c")]),
    ],
)
def test_a_table_has_anchors_positives_and_hard_negatives(tmp_path, columns, expected):
    assert rows_of(read(written(tmp_path / "nli_for_simcse.csv", TRIPLETS), columns)) == expected
    tabs = written(tmp_path / "nli.tsv", TRIPLETS.replace(",", "\t"))
    assert rows_of(read(tabs, columns)) == expected


def nli(*lines):
    keys = ("sentence1", "sentence2", "gold_label")
    return "".join(json.dumps(dict(zip(keys, line, strict=True))) + "\n" for line in lines)


def test_entailed_sentences_of_a_premise_are_joined_with_what_contradicts_it(tmp_path):
    lines = nli(
        ("p", "e1", "entailment"),
        ("q", "e3", "entailment"),
        ("p", "n", "neutral"),
        ("p", "c", "contradiction"),
        ("p", "?", "-"),
        ("p", "e2", "entailment"),
    )
    path = written(tmp_path / "snli_1.0_train.jsonl", lines)
    assert rows_of(read(path, 3)) == [("p", "e1", "c"), ("p", "e2", "c")]
    assert rows_of(read(path, 2)) == [("p", "e1"), ("p", "e2"), ("q", "e3")]


def test_captions_of_the_run_are_sentences_but_for_those_that_cannot_be_read():
    sentences = read(CAPTIONS, captions=["a cat", "", "a dog"])
    assert rows_of(sentences) == [("a cat",), ("a dog",)]


def test_what_is_wrong_with_a_line_is_named(tmp_path):
    text = written(tmp_path / "a.txt", b"good\n\nbad \xff\nfine\n")
    assert read(text, max_bad_share=0.5).faults == [
        (f"{text}, line 2", "a sentence is empty", ""),
        (f"{text}, line 3", "the sentence is not UTF-8", "byte 5"),
    ]
    table = written(tmp_path / "a.csv", "sent0,sent1\na,b\nc\nd,\n")
    assert [(key, reason) for key, reason, _ in read(table, 2, max_bad_share=0.9).faults] == [
        (f"{table}, line 3", "the row has fewer fields than the header"),
        (f"{table}, line 4", "a sentence is empty"),
    ]
    lines = nli(("p", "e", "entailment")) + '{"sentence1": "p"}\nno json\n' + nli(("p", "e", "yes"))
    faults = read(written(tmp_path / "a.jsonl", lines), 2, max_bad_share=0.9).faults
    assert [key.rpartition(" ")[2] for key, *_ in faults] == ["2", "3", "4"]
    assert {reason for _, reason, _ in faults} == {"the line is no pair of SNLI or MNLI"}


@pytest.mark.parametrize(
    "name, text, columns, message",
    [
        ("a.txt", "good\n\n\n", 1, r"66\.67% of the sentences of .*a\.txt cannot be used.*line 2"),
        ("a.txt", "", 1, "no sentence that can be used"),
        ("a.csv", "sent0,sent1\na,b\n", 3, "no column 'hard_neg'; .*hard_negative_weight to 0"),
        ("a.csv", "a,b\nc,d\n", 2, "no column 'sent0'"),
    ],
)
def test_a_file_that_is_of_no_use_is_refused(tmp_path, name, text, columns, message):
    with pytest.raises(UserError, match=message):
        read(written(tmp_path / name, text), columns, max_bad_share=0.5)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "folder.txt"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match=rf"{name} is not a file; set config\.sentences\.train"):
        read(tmp_path / name, 1 if name.endswith(".txt") else 2)


def test_an_ending_that_tells_nothing_is_refused():
    with pytest.raises(UserError, match=r"config\.sentences\.train is a\.parquet, whose ending"):
        is_supervised("a.parquet")


def test_another_sentence_or_another_order_has_another_sum(tmp_path):
    sums = {
        read(written(tmp_path / "a.txt", text)).sum
        for text in ("ab\nc\n", "a\nbc\n", "c\nab\n", "ab\nd\n")
    }
    assert len(sums) == 4
    assert read(written(tmp_path / "a.txt", "ab\r\nc")).sum in sums  # how lines end is no matter


def test_a_batch_has_no_sentence_twice_and_an_epoch_has_each_at_most_once():
    size, batch_size = 11, 3
    epochs = [
        np.concatenate([sentences_of_step(5, step, size, batch_size) for step in range(e, e + 3)])
        for e in (0, 3)
    ]
    for seen in epochs:
        assert len(set(seen.tolist())) == 9
        assert seen.max() < size
    assert epochs[0].tolist() != epochs[1].tolist()
    assert sentences_of_step(6, 0, size, batch_size).tolist() != epochs[0][:3].tolist()


def lengths(texts):
    """A tokenizer that knows how long a text is, and refuses "bad"."""
    if "bad" in texts:
        raise ValueError("a bad text")
    return np.array([[len(text)] for text in texts], np.int32)


def test_a_step_has_its_sentences_whatever_came_before_and_however_many_processes(tmp_path):
    lines = "".join("x" * number + "\n" for number in range(1, 41))
    sentences = read(written(tmp_path / "a.txt", lines))
    whole = SentenceBatches(sentences, lengths, batch_size=8, seed=3)
    expected = [whole(step)["sentences"] for step in range(12)]
    assert whole(7)["sentences"].tolist() == expected[7].tolist()
    for step in (0, 11):
        parts = [
            SentenceBatches(
                *(sentences, lengths), batch_size=8, seed=3, process_index=p, process_count=2
            )(step)["sentences"]
            for p in (0, 1)
        ]
        assert np.concatenate(parts).tolist() == expected[step].tolist()


def test_columns_stay_side_by_side(tmp_path):
    rows = "".join(f"{'a' * n},{'b' * n},{'c' * n}\n" for n in range(1, 21))
    sentences = read(written(tmp_path / "a.csv", "sent0,sent1,hard_neg\n" + rows), 3)
    batch = SentenceBatches(sentences, lengths, batch_size=4, seed=0)(2)
    assert list(batch) == ["sentences", "positives", "negatives"]
    assert batch["sentences"].tolist() == batch["positives"].tolist()
    assert batch["sentences"].tolist() == batch["negatives"].tolist()


def test_what_cannot_be_tokenised_is_replaced_by_the_next_row(tmp_path):
    sentences = read(written(tmp_path / "a.txt", "a\nbad\nccc\ndddd\n"))
    batch = SentenceBatches(sentences, lengths, batch_size=4, seed=0)(0)
    assert sorted(batch["sentences"].ravel().tolist()) == [1, 3, 3, 4]


def test_fewer_sentences_than_a_batch_are_refused(tmp_path):
    sentences = read(written(tmp_path / "a.txt", "a\nb\n"))
    with pytest.raises(UserError, match=r"batch_size is 3, but .*a\.txt has only 2 rows"):
        check_enough(sentences, 3)


def test_wordnet_has_words_with_their_glosses_and_those_of_others():
    found = {}
    for name, (word, gloss, against) in glosses():
        assert word and gloss and against and gloss != against, name
        found.setdefault(word, []).append((gloss, against))
    assert sum(map(len, found.values())) == 206_978
    against = {gloss.partition(";")[0]: against for gloss, against in found["hot"]}
    assert "low or inadequate temperature" in against["used of physical heat"]  # that of cold
    fast = against["very fast"]  # is similar to fast, whose antonym is slow
    assert fast.startswith("not moving quickly")
    assert found["dog"][0][0].startswith("a member of the genus Canis")
