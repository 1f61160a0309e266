"""Files as their publishers write them; the real ones that a package has are read in place."""

import sys

import pytest

from cyclip_jax.data.packages import installed_path
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.sentence_pairs import (
    read_documents,
    read_senteval,
    read_table,
    read_whole_benchmark,
)

KEYS = {"sentence1_key": "sentence1", "sentence2_key": "sentence2", "score_key": "score"}
WORDS = {"sentence1_key": "Word 1", "sentence2_key": "Word 2", "score_key": "Human (mean)"}
GENSIM = installed_path("gensim", "test/test_data")
with_gensim = pytest.mark.skipif(GENSIM is None, reason="pip install gensim==4.4.0")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def senteval(folder, split="test"):
    return read_senteval(str(folder), split, config_key="key")


def table(path, delimiter=",", **keys):
    return read_table(path, delimiter=delimiter, config_key="config.evals.x", **(KEYS | keys))


def write_year(folder, subset, pairs, golds):
    year = folder / "STS" / "STS13-en-test"
    write(year / f"STS.input.{subset}.txt", pairs)
    write(year / f"STS.gs.{subset}.txt", golds)


def write_benchmark(folder, split, rows):
    write(folder / "STS" / "STSBenchmark" / f"sts-{split}.csv", rows)


def test_a_pair_without_gold_is_left_out_and_the_others_keep_theirs(tmp_path):
    write_year(tmp_path, "FNWN", "a\tb\nc\td\ne\tf\n", "1.5\n\n3\n")
    write_year(tmp_path, "headlines", "g\th\r\ni\tj\r\n", "\r\n4\r\n")
    write_year(tmp_path, "OnWN", "k\tl\nm\tn\n", "2\n\n")
    pairs = senteval(tmp_path)["sts13"]
    assert pairs.first == ["a", "e", "i", "k"] and pairs.second == ["b", "f", "j", "l"]
    assert pairs.scores == [1.5, 3.0, 4.0, 2.0]
    assert pairs.subsets == ["FNWN", "FNWN", "headlines", "OnWN"]


def test_a_quotation_mark_in_the_benchmark_is_a_part_of_the_sentence(tmp_path):
    rows = [
        'main\tMSR\t2012\t7\t2.5\t"Yes," he said.\tHe said "no\r\n',
        "main\tMSR\t2012\t8\t5.0\ta, b\tc\ta licence\tanother\r\n",
    ]
    write_benchmark(tmp_path, "test", "".join(rows))
    write_benchmark(tmp_path, "dev", rows[1] + rows[0])
    pairs = senteval(tmp_path)["stsb"]
    assert pairs.first == ['"Yes," he said.', "a, b"]
    assert pairs.second == ['He said "no', "c"]
    assert senteval(tmp_path, "dev")["stsb"].scores == [5.0, 2.5]
    whole = read_whole_benchmark(str(tmp_path))
    assert whole is not None and whole.scores == [5.0, 2.5, 2.5, 5.0]


def test_the_header_of_sick_is_no_pair(tmp_path):
    names = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    rows = "6\tA dog runs\tA dog ran\t4.4\tNEUTRAL\n9\tA\tB\t1\tNEUTRAL\n"
    write(tmp_path / "SICK" / "SICK_test_annotated.txt", names + rows)
    found = senteval(tmp_path)
    assert found.keys() == {"sickr"} and read_whole_benchmark(str(tmp_path)) is None
    assert found["sickr"].first == ["A dog runs", "A"] and found["sickr"].scores == [4.4, 1.0]
    with pytest.raises(UserError, match=r"has no task of the split 'dev', .* set key to a folder"):
        senteval(tmp_path, "dev")


def test_a_bad_file_of_senteval_is_named_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"has no task of the split 'test', such as STS/STS12"):
        senteval(tmp_path)
    write_year(tmp_path, "FNWN", "a\tb\nc d\n", "1\n2\n")
    with pytest.raises(UserError, match=r"input\.FNWN\.txt, line 2: there are 1 fields .* 2 are"):
        senteval(tmp_path)
    write_year(tmp_path, "FNWN", "a\tb\nc\td\n", "1\nx\n")
    with pytest.raises(UserError, match=r"gs\.FNWN\.txt, line 2: the score 'x' is no finite numb"):
        senteval(tmp_path)
    write_year(tmp_path, "FNWN", "a\tb\nc\td\n", "1\n")
    with pytest.raises(UserError, match=r"input\.FNWN\.txt has 2 lines and .*gs\.FNWN\.txt has 1"):
        senteval(tmp_path)
    write_year(tmp_path, "FNWN", b"a\tb\nc\t\xe9\n", "1\n2\n")
    with pytest.raises(UserError, match=r"input\.FNWN\.txt, line 2 is not UTF-8; convert"):
        senteval(tmp_path)
    write_year(tmp_path, "FNWN", "a\tb\nc\td\n", "1\n2\n")
    with pytest.raises(UserError, match=r"STS\.input\.headlines\.txt cannot be read"):
        senteval(tmp_path)


def test_a_table_has_a_header_which_may_be_a_comment(tmp_path):
    rows = 'sentence1,sentence2,score\n"a, b",c,1\nd,e,\nf,g,2\n'
    pairs = table(write(tmp_path / "a.csv", rows))
    assert (pairs.first, pairs.second, pairs.scores) == (["a, b", "f"], ["c", "g"], [1.0, 2.0])
    commented = "# By us\n# Word 1\tWord 2\tHuman (mean)\na\tb\t1\nc\td\t2\n"
    pairs = table(write(tmp_path / "a.txt", commented), "\t", **WORDS)
    assert (pairs.first, pairs.scores) == (["a", "c"], [1.0, 2.0])
    below = "# By us, in a hurry\n" + rows
    assert table(write(tmp_path / "b.csv", below)).first == ["a, b", "f"]
    unmarked = rows.replace("d,e,", "#d,e,3")
    assert table(write(tmp_path / "c.csv", unmarked)).first == ["a, b", "#d", "f"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            "a,b,c\n1,2,3\n",
            r"a\.csv has no column 'sentence1' .* set config\.evals\.x\.sentence1_k",
        ),
        ("# only\n", r"has no column 'sentence1' \(columns: none\)"),
        ("sentence1,sentence2,score\na,b\n", r"a\.csv: the row has fewer fields .*\(line 2: 2 fie"),
        ("sentence1,sentence2,score\na,b,nan\n", r"a\.csv, line 2: the score 'nan' is no finite"),
        ("sentence1,sentence2,score\na,b,1\nc,d,1\n", r"a\.csv needs at least two pairs .* differ"),
    ],
)
def test_a_bad_table_says_where(tmp_path, rows, sentence):
    with pytest.raises(UserError, match=sentence):
        table(write(tmp_path / "a.csv", rows))


def test_the_part_above_the_diagonal_scores_documents(tmp_path):
    texts = write(tmp_path / "a.cor", "one\n\ntwo \xa3\nthree".encode("latin-1"))
    matrix = "1\t0.5\t0.25\r\n0\t1\t0.75\r\n0\t0\t1\r\n"
    pairs = read_documents(texts, write(tmp_path / "a.txt", matrix))
    assert pairs.first == ["one", "one", "two £"] and pairs.second == ["two £", "three", "three"]
    assert pairs.scores == [0.5, 0.25, 0.75]
    with pytest.raises(UserError, match=r"b\.txt has 2 rows, and .*a\.cor has 3 documents"):
        read_documents(texts, write(tmp_path / "b.txt", matrix[:-10]))
    with pytest.raises(UserError, match=r"b\.txt, line 1: the row has 2 numbers, and"):
        read_documents(texts, write(tmp_path / "b.txt", matrix.replace("1\t0.5", "0.5", 1)))
    with pytest.raises(UserError, match=r"b\.txt, line 2: the score 'x' is no finite number"):
        read_documents(texts, write(tmp_path / "b.txt", matrix.replace("0.75", "x")))
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        read_documents(texts, str(tmp_path / "none.txt"))


@with_gensim
def test_the_files_in_gensims_wheel_are_read_where_they_lie():
    simlex = table(str(GENSIM / "simlex999.txt"), "\t", **WORDS)
    assert len(simlex.scores) == 999
    assert (simlex.first[0], simlex.second[0], simlex.scores[0]) == ("old", "new", 1.58)
    wordsim = table(str(GENSIM / "wordsim353.tsv"), "\t", **WORDS)
    assert len(wordsim.scores) == 353 and wordsim.second[0] == "sex"
    lee = read_documents(str(GENSIM / "lee.cor"), str(GENSIM / "similarities0-1.txt"))
    assert len(lee.scores) == 1225 and len({*lee.first, *lee.second}) == 50
    assert lee.scores[:2] == [0.3, 0.24] and lee.scores[-1] == 0.36
    assert any("£3,000" in text for text in lee.first)
    assert "gensim" not in sys.modules
