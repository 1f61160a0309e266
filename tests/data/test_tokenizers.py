"""The tokenizers: ids worked out by hand from a small merges file, and small trained models."""

import gzip
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cyclip_jax.data import clip_bpe, tokenizers
from cyclip_jax.data.clip_bpe import find_clip_vocabulary
from cyclip_jax.data.tokenizers import create_tokenizer, main, train_sentencepiece
from cyclip_jax.errors import UserError
from tests.runs import status_of

# Ids of a visible ASCII character: ord(c) - 33, and 256 more as the last of its word.
TINY_MERGES = [
    "l o",  # 512
    "lo w</w>",  # 513
    "e r</w>",  # 514
    "a a",  # 515
    "n e",  # 516
    "w er</w>",  # 517
]
TINY_SIZE = 512 + 6 + 2
START, END = 518, 519

CAPTIONS = [
    "a dog runs on the green grass",
    "two children playing under a blue sky",
    "the dog and the cat on a green chair",
    "blue cars on the road under the sky",
] * 5


def write_merges(path, merges):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(["#version: tiny", *merges]) + "\n")
    return str(path)


@pytest.fixture
def tiny_vocabulary(tmp_path):
    return write_merges(tmp_path / "tiny.txt.gz", TINY_MERGES)


@pytest.fixture
def tiny(tiny_vocabulary):
    return create_tokenizer(
        "clip_bpe", vocab_size=TINY_SIZE, context_length=16, vocabulary=tiny_vocabulary
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_sentencepiece(
        CAPTIONS, vocab_size=64, output=str(tmp_path_factory.mktemp("sp") / "tokenizer.model")
    )


@pytest.fixture
def pieces(model):
    return create_tokenizer("sentencepiece", vocab_size=64, context_length=32, vocabulary=model)


def text_ids(tokenizer, text):
    """The ids between start-of-text and end-of-text."""
    row = tokenizer([text])[0].tolist()
    assert row[0] == tokenizer.vocab_size - 2
    end = len(row) - 1 - row[::-1].index(tokenizer.vocab_size - 1)
    assert not any(row[end + 1 :])
    return row[1:end]


# create_tokenizer


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'bert'.*clip_bpe, sentencepiece"):
        create_tokenizer("bert", vocab_size=10, context_length=8)


def test_context_without_room_for_the_special_tokens_is_refused(tiny_vocabulary):
    with pytest.raises(UserError, match=r"config\.model\.context_length"):
        create_tokenizer(
            "clip_bpe", vocab_size=TINY_SIZE, context_length=1, vocabulary=tiny_vocabulary
        )


def test_attributes_say_what_was_made(tiny, tiny_vocabulary, pieces, model):
    assert (tiny.vocab_size, tiny.context_length, tiny.vocabulary) == (520, 16, tiny_vocabulary)
    assert (pieces.vocab_size, pieces.context_length, pieces.vocabulary) == (64, 32, model)


# What every tokenizer promises


@pytest.mark.parametrize("name", ["tiny", "pieces"])
def test_row_is_start_ids_end_and_zeros(name, request):
    tokenizer = request.getfixturevalue(name)
    rows = tokenizer(["dog", ""])
    assert rows.dtype == np.int32
    assert rows.shape == (2, tokenizer.context_length)
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert rows[1].tolist() == [start, end] + [0] * (tokenizer.context_length - 2)
    assert np.all(rows.argmax(axis=1) == np.count_nonzero(rows, axis=1) - 1)
    assert np.all(rows.max(axis=1) == end)


@pytest.mark.parametrize("name", ["tiny", "pieces"])
def test_long_caption_ends_with_end_of_text(name, request):
    tokenizer = request.getfixturevalue(name)
    (row,) = tokenizer(["dog cat " * 100])
    assert row[0] == tokenizer.vocab_size - 2
    assert row[-1] == tokenizer.vocab_size - 1
    assert np.all(row[1:-1] < tokenizer.vocab_size - 2)
    assert np.all(row > 0)


@pytest.mark.parametrize("name", ["tiny", "pieces"])
def test_no_texts_give_no_rows(name, request):
    tokenizer = request.getfixturevalue(name)
    assert tokenizer([]).shape == (0, tokenizer.context_length)


@pytest.mark.parametrize("name", ["tiny", "pieces"])
def test_single_string_is_one_text(name, request):
    tokenizer = request.getfixturevalue(name)
    np.testing.assert_array_equal(tokenizer("a dog"), tokenizer(["a dog"]))


@pytest.mark.parametrize("name", ["tiny", "pieces"])
def test_pickled_tokenizer_gives_the_same_ids(name, request):
    tokenizer = request.getfixturevalue(name)
    expected = tokenizer(CAPTIONS)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokenizer))(CAPTIONS), expected)


@pytest.mark.parametrize("name", ["tiny", "pieces"])
def test_lone_surrogate_does_not_stop_a_run(name, request):
    assert request.getfixturevalue(name)(["dog \ud800"]).shape[0] == 1


# CLIP's byte-pair encoding


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("low", [513]),
        ("lower", [512, 517]),
        ("new", [516, 86 + 256]),
        ("a", [64 + 256]),
        ("ner", [77, 514]),  # "e r</w>" stands before "n e" in the file
        ("aaaa", [515, 64, 64 + 256]),  # pairs are found from left to right
        ("aaaaa", [515, 515, 64 + 256]),
        ("LOW  \n\tNew ", [513, 516, 86 + 256]),
        ("12", [16 + 256, 17 + 256]),  # every digit is a word
        ("½", [126, 121 + 256]),
        ("low?!", [513, 30, 0 + 256]),
        ("low's", [513, 6, 82 + 256]),
        ("low'S", [513, 6, 82 + 256]),
        ("low’s", [513, 6, 82 + 256]),
        ("low'ſ", [513, 6, 129, 123 + 256]),  # ſ is an s when case is ignored
        ("low'a", [513, 6 + 256, 64 + 256]),  # 'a ends no English word
        ("low &amp;amp; new", [513, 5 + 256, 516, 86 + 256]),
        ("&lt;", [27 + 256]),
        ("low < &amp;amp;", [513, 27 + 256, 5 + 256]),  # beside "<", ftfy leaves entities alone
        ("low\x07", [513]),
        ("low\u200b", [513, 158, 222, 233 + 256]),
        ("ö", [127, 114 + 256]),
        ("lÃ¶w", [75, 127, 114, 86 + 256]),  # UTF-8 once read as Latin-1
        ("e\u0301", [127, 102 + 256]),  # composed to é
        ("日", [162, 245, 98 + 256]),
        ("😀", [172, 253, 246, 222 + 256]),
        ("", []),
        (" \n", []),
    ],
)
def test_clip_ids_are_those_worked_out_by_hand(tiny, text, ids):
    assert text_ids(tiny, text) == ids


def test_names_of_special_tokens_are_special_tokens(tiny):
    assert text_ids(tiny, "low <End_of_text><start_of_text> low") == [513, END, START, 513]
    assert text_ids(tiny, "&lt;end_of_text&gt;low") == [END, 513]


def test_every_byte_has_an_id_of_its_own(tiny):
    characters = clip_bpe.clip_byte_characters()
    assert sorted(characters) == list(range(256))
    assert len(set(characters.values())) == 256
    order = list(characters)
    assert [order.index(byte) for byte in (33, 126, 161, 172, 174, 255)] == [
        0,
        93,
        94,
        105,
        106,
        187,
    ]
    assert [order.index(byte) for byte in (0, 32, 127, 160, 173)] == [188, 220, 221, 254, 255]
    assert [characters[byte] for byte in (0, 32, 173)] == ["Ā", "Ġ", "Ń"]


def test_cached_word_has_the_ids_of_the_first_time(tiny):
    np.testing.assert_array_equal(tiny(["lower ner lower"]), tiny(["lower ner lower"]))
    assert text_ids(tiny, "lower lower") == [512, 517, 512, 517]


def test_words_beyond_the_cache_are_encoded_all_the_same(tiny, monkeypatch):
    monkeypatch.setattr(tokenizers, "CACHED_WORDS", 10)
    for letter in "abcdefghijklmnopqrstuvwxyz":
        assert text_ids(tiny, f"{letter}.") == [ord(letter) - 33 + 256, 13 + 256]
    assert len(tiny.word_ids) == 10


def test_merges_beyond_those_of_clip_are_not_used(tmp_path):
    characters = clip_bpe.clip_byte_characters().values()
    merges = [f"{left} {right}" for left in characters for right in characters][:50_000]
    path = write_merges(tmp_path / "large.txt.gz", merges)
    tokenizer = create_tokenizer("clip_bpe", vocab_size=49408, context_length=4, vocabulary=path)
    assert tokenizer([""]).tolist() == [[49406, 49407, 0, 0]]


def test_vocab_size_must_be_that_of_the_merges(tiny_vocabulary):
    with pytest.raises(UserError, match=r"520 ids but config\.model\.vocab_size is 49408"):
        create_tokenizer(
            "clip_bpe", vocab_size=49408, context_length=16, vocabulary=tiny_vocabulary
        )


@pytest.mark.parametrize("merges", [["l o", "low er"], ["l o w"], ["l o", "", "n e"], ["l o"] * 2])
def test_damaged_merges_name_the_line(tmp_path, merges):
    path = write_merges(tmp_path / "damaged.txt.gz", merges)
    with pytest.raises(UserError, match=r"damaged\.txt\.gz, line [23]: .*config\.data\.vocabulary"):
        create_tokenizer("clip_bpe", vocab_size=514, context_length=16, vocabulary=path)


@pytest.mark.parametrize(
    "content",
    [None, b"plain text", gzip.compress(b"#\nl o\n" * 99, mtime=0)[:-12]],
    ids=["missing", "not gzip", "cut short"],
)
def test_unreadable_merges_say_what_to_set(tmp_path, content):
    path = tmp_path / "vocabulary.txt.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"vocabulary\.txt\.gz .*config\.data\.vocabulary"):
        create_tokenizer("clip_bpe", vocab_size=514, context_length=16, vocabulary=path)


@pytest.fixture
def only_packages_of(tmp_path, monkeypatch):
    """Makes `tmp_path` the one place that packages are found in."""
    for package in ("open_clip", "clip"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install_package(folder, name, with_vocabulary=True):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise ImportError('imported')")
    if with_vocabulary:
        return write_merges(folder / name / "bpe_simple_vocab_16e6.txt.gz", TINY_MERGES)
    return None


@pytest.mark.parametrize("package", ["open_clip", "clip"])
def test_vocabulary_is_found_in_a_package_without_importing_it(only_packages_of, package):
    path = install_package(only_packages_of, package)
    assert find_clip_vocabulary() == path
    tokenizer = create_tokenizer("clip_bpe", vocab_size=TINY_SIZE, context_length=4)
    assert tokenizer.vocabulary == path
    assert tokenizer(["low"]).tolist() == [[START, 513, END, 0]]


def test_package_without_the_file_is_passed_over(only_packages_of):
    install_package(only_packages_of, "open_clip", with_vocabulary=False)
    path = install_package(only_packages_of, "clip")
    assert find_clip_vocabulary() == path


def test_vocabulary_that_no_package_has_names_the_cure(only_packages_of):
    (only_packages_of / "clip.py").write_text("raise ImportError('imported')")
    with pytest.raises(
        UserError, match=r"config\.data\.vocabulary .* `pip install --no-deps open_clip_torch`"
    ):
        find_clip_vocabulary()


# CLIP's own vocabulary, against open_clip

PLAIN = [
    *("a photo of a", "Two dogs", "CAT", "standing", "at 10:30", "the man's", "I'LL", "won't"),
    *("they've", "we're", "she'd", "I'm", "it'S", "'", "''", "1234567", "3.14", "½", "٣", "²"),
    *("!!!", "?!", "...", "…", "—", "“quoted”", "‘s", "don’t", "#tag", "@user", "$5", "100%"),
    *("supercalifragilisticexpialidocious", "antidisestablishmentarianism", "x" * 60, "-" * 40),
]
WORLD = [
    *(
        "日本語",
        "一只猫在睡觉",
        "고양이",
        "\u1112\u1161\u11ab",
        "ねこ",
        "か\u3099",
        "ｶﾞ",
        "кошка",
        "גָּדוֹל",
    ),
    *("قطة", "बिल्ली", "แมว", "Ελληνικά ΟΔΟΣ", "ΣΑΣ", "İstanbul", "ıI", "ſ", "'ſ", "Straße", "ẞ"),
    *(
        "ﬁ",
        "ﬄ",
        "ǅ",
        "Ａｂｃ１",
        "①",
        "Ⅷ",
        "㍿",
        "e\u0301",
        "E\u0301\u0323",
        "a\u20dd",
        "Z\u0351\u036b",
    ),
]
EMOJI = [
    *(
        "😀",
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "👍🏽",
        "🤦🏿‍♀️",
        "🇩🇪🇫🇷",
        "🇺",
        "1️⃣",
        "❤️",
        "☎",
        "©️",
        "\U000e0067",
        "\u200d",
    ),
]
MARKUP = [
    *("&amp;", "&amp;amp;", "&amp;amp;lt;", "&lt;b&gt;", "&quot;", "&#39;", "&amp;#39;", "&#x27;"),
    *("&eacute;", "&amp;eacute;", "&nbsp;", "&AMP;", "&amp", "&notanentity;", "&#0;", "&#x1F600;"),
    *("<b>bold</b>", "<", ">", "&", "<start_of_text>", "<end_of_text>", "<End_Of_Text>"),
    *("https://example.com/a?b=1&amp;c=2#d", "www.x.org", "me@example.org", "image_001.JPG"),
]
DAMAGED = [
    *(
        "lÃ¶w",
        "cafÃ©",
        "â€œquoteâ€\x9d",
        "â€™s",
        "Ã\xa0",
        "schÃƒÂ¶n",
        "ðŸ˜€",
        "Ñ‚ÐµÑÑ‚",
        "\ufffd",
        "\ufeff",
    ),
    *(
        "\x00",
        "\x07",
        "\x1b[31m",
        "\x1f",
        "\x7f",
        "\x85",
        "\x93",
        "\u200b",
        "\xad",
        "\u2028",
        "\u202e",
    ),
    *(
        "\r\n",
        "\t",
        "\n\n",
        "\u3000",
        "\xa0",
        "\x0b",
        "\x0c",
        "\ud83d",
        "\ud83d\ude00",
        "\U0010ffff",
    ),
]
FRAGMENTS = [*PLAIN, *WORLD, *EMOJI, *MARKUP, *DAMAGED]


def some_captions(odd_fragments, count):
    """`count` captions drawn from all fragments; one in seven is repeated, and so often cut."""
    generator = random.Random(ascii(odd_fragments))
    captions = []
    for _ in range(count):
        sources = generator.choices((FRAGMENTS, PLAIN, odd_fragments), (5, 3, 2), k=7)
        words = [generator.choice(source) for source in sources[: generator.randint(1, 7)]]
        caption = generator.choice(("", " ", " ", "  ")).join(words)
        captions.append(caption * (generator.randint(3, 7) if generator.random() < 1 / 7 else 1))
    return captions


@pytest.fixture(scope="module")
def clip():
    return create_tokenizer(
        "clip_bpe", vocab_size=49408, context_length=77, vocabulary=find_clip_vocabulary()
    )


def test_ids_are_those_of_open_clip_on_ten_thousand_texts(clip):
    from tests.pytorch import open_clip

    reference = open_clip.get_tokenizer("RN50-quickgelu")
    checked, cut = set(), 0

    @settings(max_examples=110, derandomize=True, database=None, deadline=None)
    @given(st.lists(st.text(min_size=1, max_size=8), min_size=8, max_size=8, unique=True))
    def ids_agree(odd_fragments):
        nonlocal cut
        texts = [*odd_fragments, *some_captions(odd_fragments, 100)]
        expected = reference(texts).numpy()
        np.testing.assert_array_equal(clip(texts), expected)
        checked.update(texts)
        cut += np.count_nonzero(expected[:, -1])

    ids_agree()
    assert len(checked) >= 10_000  # all different
    assert cut > 500  # texts that fill the context


@pytest.mark.parametrize(
    "unit", ["a dog and a cat ", "antidisestablishmentarianism", "😀", "日本", "7"]
)
def test_long_caption_ends_with_the_end_of_text_of_clip(clip, unit):
    (row,) = clip([unit * 200])
    assert row.shape == (77,)
    assert (row[0], row[-1]) == (49406, 49407)
    assert np.all(row[1:-1] < 49406)


# SentencePiece


def test_sentencepiece_ids_spell_the_text(pieces, model):
    ids = text_ids(pieces, "the green dog")
    assert tokenizers.read_sentencepiece(model).decode(ids) == "the green dog"


def test_sentencepiece_folds_case_and_width(pieces):
    assert text_ids(pieces, "ＤＯＧ\tGreen") == text_ids(pieces, "dog green")


def test_only_padding_has_id_zero_and_only_the_unknown_one(pieces):
    assert 1 not in text_ids(pieces, "a green dog")
    assert 1 in text_ids(pieces, "日")
    for text in ("<pad>", "<unk>", "<s>", "</s>", "\0"):
        assert 0 not in text_ids(pieces, text)


def test_small_corpus_leaves_ids_unused(model):
    tokenizer = create_tokenizer(
        "sentencepiece", vocab_size=8000, context_length=12, vocabulary=model
    )
    assert tokenizer(["dog"])[0].max() == 7999
    assert max(text_ids(tokenizer, "the green dog")) < 62


def test_pieces_must_leave_room_for_the_special_tokens(model):
    count = tokenizers.read_sentencepiece(model).get_piece_size()
    create_tokenizer("sentencepiece", vocab_size=count + 2, context_length=8, vocabulary=model)
    with pytest.raises(
        UserError, match=rf"{count} pieces.*config\.model\.vocab_size = {count + 1}"
    ):
        create_tokenizer("sentencepiece", vocab_size=count + 1, context_length=8, vocabulary=model)


def test_sentencepiece_needs_a_vocabulary():
    with pytest.raises(UserError, match=r"config\.data\.vocabulary"):
        create_tokenizer("sentencepiece", vocab_size=64, context_length=8)


@pytest.mark.parametrize("content", [None, b"", b"no model at all"])
def test_unreadable_model_says_what_to_set(tmp_path, content):
    path = tmp_path / "broken.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.model .*config\.data\.vocabulary"):
        create_tokenizer("sentencepiece", vocab_size=64, context_length=8, vocabulary=path)


def test_training_leaves_two_ids_for_the_special_tokens(tmp_path):
    path = train_sentencepiece(CAPTIONS, vocab_size=30, output=str(tmp_path / "tokenizer.model"))
    assert tokenizers.read_sentencepiece(path).get_piece_size() == 28


def test_training_twice_writes_the_same_file(model, tmp_path):
    again = train_sentencepiece(iter(CAPTIONS), vocab_size=64, output=str(tmp_path / "again"))
    with open(model, "rb") as first, open(again, "rb") as second:
        assert first.read() == second.read()


def test_training_is_silent(tmp_path, capfd):
    train_sentencepiece(CAPTIONS, vocab_size=8000, output=str(tmp_path / "tokenizer.model"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("caption", ["zebra " * 2000, "▅ zebra", "zebra\tzebra", "zebra \ud800"])
def test_every_caption_is_learnt_from(tmp_path, caption):
    path = train_sentencepiece(
        [*CAPTIONS, caption], vocab_size=100, output=str(tmp_path / "tokenizer.model")
    )
    tokenizer = create_tokenizer(
        "sentencepiece", vocab_size=100, context_length=12, vocabulary=path
    )
    assert 1 not in text_ids(tokenizer, "zebra")


@pytest.mark.parametrize("captions", [[], ["", " \n"]])
def test_training_without_captions_is_refused(tmp_path, captions):
    with pytest.raises(UserError, match="no caption"):
        train_sentencepiece(captions, vocab_size=64, output=str(tmp_path / "tokenizer.model"))


@pytest.mark.parametrize(("captions", "vocab_size"), [(CAPTIONS, 10), (CAPTIONS, 0), (["\0"], 64)])
def test_impossible_training_is_refused(tmp_path, captions, vocab_size):
    with pytest.raises(UserError, match=f"a vocabulary of {vocab_size} ids"):
        train_sentencepiece(captions, vocab_size=vocab_size, output=str(tmp_path / "model"))
    assert not list(tmp_path.iterdir())


# The command


def write_csv(path, rows, encoding="utf-8"):
    path.write_text("".join(row + "\n" for row in rows), encoding=encoding)
    return path


def run_command(*arguments):
    command = [sys.executable, "-m", "cyclip_jax.data.tokenizers", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_trains_a_vocabulary(tmp_path):
    rows = [f'{i}.jpg,"{text}"' for i, text in enumerate(CAPTIONS)]
    blank = ["20.jpg,", "21.jpg,  ", "22.jpg"]
    source = write_csv(tmp_path / "captions.csv", ["image,caption", *rows, *blank])
    output = tmp_path / "new folder" / "tokenizer.model"
    finished = run_command(f"--train={source}", "--vocab_size=64", f"--output={output}")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "from 23 captions, 3 of them blank" in finished.stdout
    expected = train_sentencepiece(CAPTIONS, vocab_size=64, output=str(tmp_path / "expected"))
    with open(expected, "rb") as file:
        assert output.read_bytes() == file.read()


def test_failed_command_has_exit_status_one_and_no_traceback(tmp_path):
    missing = tmp_path / "missing.csv"
    finished = run_command(f"--train={missing}", "--vocab_size=64", "--output=tokenizer.model")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"error: cannot read the captions of {missing}: ")
    assert finished.stderr.count("\n") == 1


def test_command_reads_a_file_with_a_byte_order_mark(tmp_path):
    source = write_csv(tmp_path / "captions.csv", ["caption", *CAPTIONS], encoding="utf-8-sig")
    assert (
        status_of(main, [f"--train={source}", "--vocab_size=64", f"--output={tmp_path / 'model'}"])
        == 0
    )


def test_command_reads_other_columns_and_delimiters(tmp_path):
    source = write_csv(tmp_path / "c.tsv", ["url\ttext", *(f"u\t{text}" for text in CAPTIONS)])
    output = tmp_path / "tokenizer.model"
    arguments = [f"--train={source}", "--vocab_size=64", f"--output={output}"]
    assert status_of(main, [*arguments, "--caption_key=text", r"--delimiter=\t"]) == 0
    assert output.exists()


@pytest.mark.parametrize(
    ("rows", "extra", "sentence"),
    [
        (None, [], "No such file"),
        (["image,text", "1.jpg,dog"], [], "no column 'caption' (columns: image, text)"),
        ([], [], "no column 'caption' (columns: none)"),
        (["caption"], [], "no caption to train on"),
        (["caption", "dog"], ["--delimiter=ab"], "--delimiter is 'ab'; set it to one character"),
        (["caption", "d" * 200_000], [], "line 2: a field has more than 131072 characters"),
    ],
)
def test_command_says_in_one_sentence_what_is_wrong(tmp_path, capsys, rows, extra, sentence):
    source = tmp_path / "captions.csv"
    if rows is not None:
        write_csv(source, rows)
    output = tmp_path / "tokenizer.model"
    assert (
        status_of(main, [f"--train={source}", "--vocab_size=64", f"--output={output}", *extra]) == 1
    )
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert not output.exists()


def test_command_refuses_another_encoding(tmp_path, capsys):
    source = write_csv(tmp_path / "captions.csv", ["caption", "café"], encoding="latin-1")
    assert (
        status_of(main, [f"--train={source}", "--vocab_size=64", f"--output={tmp_path / 'model'}"])
        == 1
    )
    assert "line 2, byte 4 of the line is not UTF-8" in capsys.readouterr().err
