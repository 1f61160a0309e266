"""Class folders as they are given out: whatever the decoder reads is a picture."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from cyclip_jax.data.decoding import pixels_of
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data import class_folders
from cyclip_jax.evals.data.class_names import mean_nothing
from cyclip_jax.evals.data.labelled import open_labelled, open_named

KEY = "config.evals.x.folder"


def encode(file_format, colour=(200, 30, 30)):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), colour).save(file, file_format)
    return file.getvalue()


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)


def test_every_file_that_the_decoder_reads_is_a_picture_and_the_rest_is_named_once(
    tmp_path, caplog
):
    files = {
        "cat/1.ppm": encode("PPM"),
        "cat/2.tif": encode("TIFF"),
        "cat/3.jfif": encode("JPEG"),
        "cat/4.JPE": encode("JPEG"),
        "cat/5": encode("PNG"),
        "cat/6.bin": encode("BMP"),
        "dog/7.pgm": encode("PPM"),
        "dog/inner/8": encode("AVIF"),
        "dog/GT-dog.csv": b"Filename;Width;Height\n",
        "cat/GT-cat.csv": b"Filename;Width;Height\n",
        "cat/Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
        "cat/empty": b"",
        "cat/.DS_Store": b"\0\0\0\1Bud1",
        "cat/._1.jpg": encode("JPEG"),
        "cat/.thumbnails/9.jpg": encode("JPEG"),
        ".cache/10.jpg": encode("JPEG"),
    }
    with caplog.at_level(logging.WARNING):
        dataset = open_labelled(write(tmp_path, files), config_key=KEY)
    names = dataset.source.keys(range(len(dataset.labels)))
    assert names == [name for name in files if name.split("/")[-1][0].isdecimal()][:8]
    assert dataset.classes == ["cat", "dog"]
    for index in range(len(names)):
        assert np.abs(pixels_of(dataset.source.read(index).image) - [200, 30, 30]).max() < 4
    (record,) = caplog.records
    assert "4 files are left out, as they are no pictures: cat/GT-cat.csv, " in record.message


def test_files_of_usual_endings_are_listed_without_a_look_into_them(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(class_folders, "begins_as_picture", looks.append)
    usual = ("JPEG", "jpg", "png", "webp", "gif", "bmp", "ppm", "tif", "tiff", "jfif")
    write(tmp_path, {f"cat/{ending}.{ending}": b"" for ending in usual} | {"cat/other": b""})
    files, labels = class_folders.pictures_of_classes(str(tmp_path), ["cat"])
    assert (len(files), len(labels)) == (len(usual), len(usual))
    assert looks == [f"{tmp_path}/cat/other"]


def test_folders_without_any_picture_are_refused(tmp_path):
    write(tmp_path, {"cat/a.txt": b"a cat", "dog/.1.jpg": encode("JPEG")})
    with pytest.raises(UserError, match=r"the folders of .* have no pictures; set config\.evals"):
        open_labelled(str(tmp_path), config_key=KEY)


@pytest.mark.parametrize("key", ["n01440764", "00003", "class_7", "1.0"])
def test_numbers_of_any_kind_are_refused_as_names(key, tmp_path):
    other = key[:-1] + "1"
    write(tmp_path, {f"{name}/1.jpg": encode("JPEG") for name in (key, other)})
    with pytest.raises(UserError, match=r"\(.*, …\) are numbers without names; set config\.evals"):
        open_named(str(tmp_path), config_key=KEY)
    named = tmp_path / "names.json"
    named.write_text('{"classes": ["a tench", "a goldfish"]}')
    assert open_named(str(tmp_path), config_key=KEY, classes=str(named)).is_named


def test_names_with_numbers_are_names():
    for keys in (["A320", "A321"], ["001.Black_footed_Albatross"], ["3", "cat"], ["n02 thing"]):
        assert not mean_nothing(keys)


def test_one_class_is_said(tmp_path, caplog):
    open_labelled(write(tmp_path, {"cat/1.jpg": encode("JPEG")}), config_key=KEY)
    assert "has one class" in caplog.text
