"""Tables as people make them: with quoting and without it, on any system, and damaged."""

import csv
import gzip
import io

import pytest

from cyclip_jax.data import tables, tokenizers
from cyclip_jax.data.record import Unreadable
from cyclip_jax.data.sources import create_source
from cyclip_jax.errors import UserError
from cyclip_jax.evals.compositional import Compositional
from cyclip_jax.evals.data.labelled import open_labelled

NO_QUOTING = [
    "image\tcaption",
    "0.jpg\ta red kite",
    '1.jpg\t"Sold out sign on a wet road',
    '2.jpg\ta pipe of 3" beside a bench',
    '3.jpg\t"Fresh" bread in the window',
    '4.jpg\t"whole"',
]


@pytest.fixture
def write(tmp_path):
    """A function that writes lines, text or bytes to a file and gives back its path."""

    def write(content, name="pairs.csv"):
        content = "".join(f"{line}\n" for line in content) if isinstance(content, list) else content
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def opened(path):
    return create_source("csv", path, config_key="config.data.train")


def pairs(path):
    source = opened(path)
    return list(zip(source.keys(range(len(source))), source.captions(), strict=True))


def refused(path):
    with pytest.raises(UserError) as error:
        opened(path)
    return str(error.value)


def reason(source, row):
    with pytest.raises(Unreadable) as error:
        source.read(row)
    return str(error.value)


def test_a_tsv_made_without_quoting_is_read_without_it(write):
    path = write(NO_QUOTING, "train.tsv")
    assert pairs(path) == [tuple(line.split("\t")) for line in NO_QUOTING[1:]]
    assert len(tokenizers.read_captions(path)) == 5


@pytest.mark.parametrize("row", [2, 3, 4])
def test_one_mark_that_quoting_would_not_write_is_enough(write, row):
    path = write([NO_QUOTING[0], NO_QUOTING[row], '5.jpg\t"whole"'], "train.tsv")
    assert pairs(path)[1] == ("5.jpg", '"whole"')


def test_marks_at_the_ends_of_two_fields_are_no_pair(write):
    path = write(["image\tcaption", '"0.jpg\tan inch"'], "train.tsv")
    assert pairs(path) == [('"0.jpg', 'an inch"')]


def test_a_tsv_with_quoting_is_read_with_it(write):
    file = io.StringIO()
    rows = [("0.jpg", 'say "hello"'), ("1.jpg", "a\ttab"), ("2.jpg", "plain"), ("3.jpg", "")]
    csv.writer(file, delimiter="\t").writerows([("image", "caption"), *rows])
    assert pairs(write(file.getvalue(), "train.tsv")) == rows


def test_a_csv_that_python_wrote_comes_back(write):
    texts = ['a "b"', "c\nd", "e,f", 'g",\n"h', "i\r\nj", '"', "", "line, and\nanother, so", " k "]
    rows = [(f"{n}.jpg", text) for n, text in enumerate(texts)]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        file = io.StringIO()
        csv.writer(file, quoting=quoting).writerows([("image", "caption"), *rows])
        assert pairs(write(file.getvalue())) == [
            (name, text.replace("\r\n", "\n")) for name, text in rows
        ]


def test_a_quote_that_swallows_rows_is_named_by_the_line_where_it_opens(write):
    rows = ["image,caption", "0.jpg,a kite", '1.jpg,"Sold out sign', "2.jpg,a boat"]
    assert "pairs.csv, line 3: a quotation mark opens a field and never clos" in refused(
        write([*rows, "3.jpg,a door"])
    )
    assert "line 3: a quotation mark opens a field and closes only in line 5, where" in refused(
        write([*rows, '3.jpg,a pipe of 3" width'])
    )
    assert "line 3: a quotation mark opens a field and closes only in line 5, around" in refused(
        write([*rows, '3.jpg,a pipe of 3"'])
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("1.jpg,a boat, two people", "the row has more fields than the header: line 3: 3 fields"),
        ("1.jpg", "the row has fewer fields than the header: line 3: 1 field, the header has 2"),
        ('1.jpg,"Fresh" bread', "text follows a closing quotation mark: line 3: 1.jpg,"),
    ],
)
def test_a_row_that_quoting_would_write_otherwise_costs_itself(write, row, expected):
    source = opened(write(["image,caption", "0.jpg,a kite", row, "2.jpg,a pipe of 3 inch"]))
    assert source.captions() == ["a kite", "", "a pipe of 3 inch"]
    assert source.keys([1]) == ["1.jpg"]
    assert reason(source, 1).startswith(expected)


def test_blank_fields_over_the_header_lose_nothing(write):
    assert pairs(write(["image,caption", "0.jpg,a kite,, "])) == [("0.jpg", "a kite")]


def test_a_table_of_which_no_row_can_be_used_is_refused(write):
    assert "no row of" in (told := refused(write(["image,caption", "0.jpg,a,b"])))
    assert "line 2: 3 fields, the header has 2" in told


def test_labels_choices_and_vocabularies_are_read_alike(write, tmp_path):
    labels = write(["image,label", "0.jpg,cat, tabby"], "labels.csv")
    with pytest.raises(UserError, match=r"labels\.csv.*line 2: 3 fields, the header has 2"):
        open_labelled(labels, config_key="config.evals.x.folder")
    labels = write(["image,label", "0.jpg,dog", "1.jpg,cat, tabby"], "labels.csv")
    with pytest.raises(UserError, match=r"labels\.csv.*line 3: 3 fields, the header has 2"):
        open_labelled(labels, config_key="config.evals.x.folder")
    header = "image,caption,negative_caption"
    choice = write([header, "0.jpg,a cat, asleep,a dog"], "choice.csv")
    with pytest.raises(UserError, match=r"choice\.csv.*line 2: 4 fields, the header has 3"):
        Compositional("x", examples=choice).open()
    with pytest.raises(UserError, match=r"choice\.csv.*line 2: 4 fields, the header has 3"):
        tokenizers.read_captions(choice)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_lines_end_as_on_any_system(write, end, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 64)  # which line ends straddle
    rows = [(f"{n}.jpg", f"caption {n}") for n in range(40)]
    text = end.join(",".join(row) for row in [("image", "caption"), *rows])
    assert pairs(write(text)) == pairs(write(text + end)) == rows


def test_a_carriage_return_within_a_text_stays_a_blank(write):
    text = "image,caption\r\n0.jpg,a wet road\rand more\r\n1.jpg,two\r\n"
    assert pairs(write(text)) == [("0.jpg", "a wet road\rand more"), ("1.jpg", "two")]


def test_a_blank_before_a_columns_name_is_what_is_told(write):
    told = refused(write(["image, caption", "0.jpg, a kite"]))
    assert "no column 'caption' but ' caption', with a blank in its name; remove the blank" in told
    source = create_source("csv", write("image, caption\n0.jpg,a\n"), config_key="c",
                           caption_key=" caption")  # fmt: skip
    assert source.captions() == ["a"]


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        ("image,caption\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("image,caption\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        (gzip.compress(b"image,caption\n", mtime=0), "gunzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_something_else_is_told_with_its_cure(write, content, cure):
    path = write(content)
    assert cure in refused(path) and "LATIN1" not in refused(path)
    with pytest.raises(UserError, match=cure):
        tokenizers.read_captions(path)


def test_a_message_is_short_however_large_the_file(write):
    told = refused(write("picture" * 9_000 + "," + ",".join(map(str, range(10_000)))))
    assert len(told) <= 1_500 and told.endswith("set config.data.image_key")


def test_a_line_without_end_is_no_table(write, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_LINE", 1 << 10)
    monkeypatch.setattr(tables, "BLOCK", 1 << 8)
    assert "a line of more than" in refused(write("image,caption" + "x" * 4_000))


def test_json_lines_end_only_at_a_line_feed(tmp_path):
    rows = [
        '{"image": "0.jpg", "caption": "a\u2028b", "negative_caption": "c"}',
        '{"image": "1.jpg", "caption": "a\u0085b", "negative_caption": "c"}',
    ]
    path = tmp_path / "choice.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    Compositional("x", examples=str(path)).open()
    path.write_text("\n".join([*rows, "{"]), encoding="utf-8")
    with pytest.raises(UserError, match=r"choice\.jsonl cannot be read as \.jsonl: line 3: "):
        Compositional("x", examples=str(path)).open()


def test_files_whose_name_begins_with_a_dot_are_no_examples(tmp_path):
    row = '[{"image": "0.jpg", "caption": "a", "negative_caption": "b"}]'
    (tmp_path / "swap.json").write_text(row)
    (tmp_path / "._swap.json").write_bytes(b"\0\5\x16\7" + b"\xb0")
    Compositional("x", examples=str(tmp_path)).open()
