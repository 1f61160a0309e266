"""Reading image-caption pairs from CSV files, and what is refused."""

import tracemalloc

import pytest

from cyclip_jax.data import sources
from cyclip_jax.data.sources import ranges
from cyclip_jax.errors import UserError


def open_csv(path, **changes):
    arguments = {"image_key": "image", "caption_key": "caption", "delimiter": ","}
    arguments |= {"config_key": "config.data.train"} | changes
    return sources.create_source("csv", path, **arguments)


@pytest.fixture
def write_csv(tmp_path):
    """A function that writes text or bytes to a file and gives back its path."""

    def write(content, name="pairs.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def read_all(source):
    """[(encoded image, caption)] of every example."""
    records = [source.read(index) for index in range(len(source))]
    return [(record.image, record.captions[0]) for record in records]


def test_rows_are_read_by_their_index(tmp_path, write_csv):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"picture a")
    (tmp_path / "b.jpg").write_bytes(b"picture b")
    path = write_csv("caption,image\na first one,images/a.jpg\nthe second,b.jpg\n")
    source = open_csv(path)

    assert len(source) == 2
    assert source.keys([1, 0]) == ["b.jpg", "images/a.jpg"]
    assert source.captions() == ["a first one", "the second"]
    assert read_all(source) == [(b"picture a", "a first one"), (b"picture b", "the second")]


def test_absolute_paths_and_schemes_stand_alone(tmp_path, write_csv):
    (tmp_path / "elsewhere").mkdir()
    picture = tmp_path / "elsewhere" / "a.jpg"
    picture.write_bytes(b"picture")
    source = open_csv(write_csv(f"image,caption\n{picture},one\nfile://{picture},two\n"))

    assert [encoded for encoded, _ in read_all(source)] == [b"picture", b"picture"]


def test_a_csv_in_the_working_folder_is_read_beside_its_images(tmp_path, write_csv, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"picture")
    write_csv("image,caption\na.jpg,one\n")
    monkeypatch.chdir(tmp_path)

    assert read_all(open_csv("pairs.csv")) == [(b"picture", "one")]


@pytest.mark.parametrize("delimiter", ["\t", "\\t"], ids=["tab", "backslash t"])
def test_a_tsv_is_read_with_a_tab_typed_or_spelt(write_csv, delimiter):
    path = write_csv("image\tcaption\na.jpg\tone, two\n", "pairs.tsv")

    assert open_csv(path, delimiter=delimiter).captions() == ["one, two"]


def test_quotes_line_breaks_and_other_scripts_reach_the_caption(write_csv):
    rows = ['a.jpg,"one, ""two"""', 'b.jpg,"three\nfour"', "c.jpg,猫と犬", "d.jpg,"]
    source = open_csv(write_csv("image,caption\n" + "\r\n".join(rows)))

    assert source.captions() == ['one, "two"', "three\nfour", "猫と犬", ""]


def test_a_byte_order_mark_is_no_part_of_the_first_column(write_csv):
    assert len(open_csv(write_csv("\ufeffimage,caption\na.jpg,one\n"))) == 1


def test_blank_lines_are_no_rows_and_short_rows_are_empty_at_the_end(write_csv):
    source = open_csv(write_csv("image,caption\n\na.jpg\n\nb.jpg,two\n"))

    assert source.keys(range(2)) == ["a.jpg", "b.jpg"]
    assert source.captions() == ["", "two"]


@pytest.mark.parametrize("path", [None, ""])
def test_no_path_asks_for_one_by_its_config_key(path):
    with pytest.raises(UserError) as error:
        open_csv(path, config_key="config.data.validation")

    assert str(error.value) == (
        "config.data.validation is empty; set it to a CSV of image paths and captions, "
        "e.g. --config.data.validation=/data/cc3m/train.csv, or to shards"
    )


def test_a_path_that_is_no_file_is_named_with_its_config_key(tmp_path):
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(UserError, match=f"{path} is not a file; set config.data.train to"):
            open_csv(path)


def test_a_missing_column_is_named_with_those_there_are(write_csv):
    path = write_csv("image,text\na.jpg,one\n", "cc3m.csv")
    with pytest.raises(UserError) as error:
        open_csv(path)

    assert str(error.value) == (
        f"{path} has no column 'caption' (columns: image, text); set config.data.caption_key"
    )
    with pytest.raises(UserError, match=r"no column 'filepath'.*set config\.data\.image_key$"):
        open_csv(path, image_key="filepath")


def test_a_wrong_delimiter_shows_as_a_single_column(write_csv):
    with pytest.raises(UserError, match=r"\(columns: image\tcaption\).*or config\.data\.delimiter"):
        open_csv(write_csv("image\tcaption\na.jpg\tone\n"))


def test_a_delimiter_of_several_characters_is_refused(write_csv):
    with pytest.raises(UserError, match=r"config\.data\.delimiter is ', '"):
        open_csv(write_csv("image,caption\na.jpg,one\n"), delimiter=", ")


def test_a_file_without_rows_is_refused(write_csv):
    with pytest.raises(UserError, match="has no rows below its header"):
        open_csv(write_csv("image,caption\n\n"))
    with pytest.raises(UserError, match=r"no column 'image' \(columns: none\)"):
        open_csv(write_csv(""))


def test_bytes_that_are_not_utf8_are_named_by_line_and_place(write_csv):
    path = write_csv("image,caption\na.jpg,one\nb.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"pairs\.csv, line 3, byte 10 of the line is not UTF-8"):
        open_csv(path)


def test_a_quote_that_never_closes_is_named_by_its_line(write_csv):
    rows = "".join(f"{i}.jpg,caption number {i}\n" for i in range(10_000))
    with pytest.raises(UserError, match=r"csv, line 2: a quotation mark opens a field and never"):
        open_csv(write_csv('image,caption\na.jpg,"one\n' + rows))


def test_an_index_out_of_range_is_refused(write_csv):
    source = open_csv(write_csv("image,caption\na.jpg,one\n"))
    with pytest.raises(IndexError):
        source.keys([1])


def test_a_source_is_made_by_its_name(write_csv):
    path = write_csv("picture;text\na.jpg;one\n")
    options = {"image_key": "picture", "caption_key": "text", "delimiter": ";"}
    source = sources.create_source("csv", path, config_key="config.data.train", **options)

    assert source.captions() == ["one"]
    with pytest.raises(UserError, match=r"no data source 'cvs'; set config\.data\.source to.*csv"):
        sources.create_source("cvs", path, config_key="config.data.train", **options)
    with pytest.raises(UserError, match="no setting captoin_key beside config"):
        sources.create_source("csv", path, config_key="config.data.train", captoin_key="text")
    with pytest.raises(UserError, match=r"config\.data\.validation is empty"):
        sources.create_source("csv", "", config_key="config.data.validation", **options)


def test_rows_cost_little_more_memory_than_their_text(tmp_path):
    rows, text = 20_000, "images/0000001.jpg,a caption of the usual length for a picture\n"
    path = tmp_path / "large.csv"
    path.write_text("image,caption\n" + text * rows)
    tracemalloc.start()
    try:
        source = open_csv(path)
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(source) == rows
    # Two lists of Python strings would take 200 bytes a row besides the text.
    assert size / rows < len(text) + 24
    assert peak / rows < 3 * len(text)


@pytest.mark.parametrize(
    "braces", ["{0..9999999}", "{0..1000}{0..1000}", "{1..%s}" % ("9" * 5_000)]
)
def test_braces_that_name_more_files_than_there_can_be_are_refused(tmp_path, braces):
    with pytest.raises(UserError, match="whose braces name more than 1,000,000 files"):
        ranges.expand(f"{tmp_path}/{braces}.tar", config_key="c", endings=(".tar",))
