"""Evaluations that flags name by their data alone."""

import pytest

from cyclip_jax import evals
from cyclip_jax.errors import UserError
from cyclip_jax.evals.by_flags import FLAGS, evaluations_of, in_words_of_flags


def named(**given):
    """{name: place} of what flags are given."""
    found = evaluations_of({kind: [text] for kind, text in given.items()})
    return {name: settings[FLAGS[settings["type"]]] for name, settings in found.items()}


@pytest.mark.parametrize(
    "kind, place, name",
    [
        ("zeroshot", "/data/wds_cifar10", "wds_cifar10"),
        ("zeroshot", "/data/wds_cifar10/", "wds_cifar10"),
        ("zeroshot", "/data/cifar10/test", "cifar10_test"),
        ("zeroshot", "preset:dtd=/data/x@train", "dtd"),
        ("zeroshot", "tfds:imagenet_v2/matched-frequency@test", "imagenet_v2_matched-frequency"),
        ("retrieval", "/data/coco/dataset_coco.json", "dataset_coco"),
        ("retrieval", "/data/coco/val.csv", "coco_val"),
        ("retrieval", "/data/flickr/{0..3}.tar", "flickr"),
        ("retrieval", "/data/flickr/test/{0,1}.tar", "flickr_test"),
        ("sts", "/data/sick.v2.tsv", "sick_v2"),
        ("zeroshot", "/data/画像", "画像"),
    ],
)
def test_an_evaluation_is_called_as_the_folder_or_file_of_its_data(kind, place, name):
    assert named(**{kind: place}) == {name: place}


def test_a_folder_that_has_a_comma_in_its_name_is_one_folder(tmp_path):
    folder = tmp_path / "cats, dogs"
    folder.mkdir()
    assert named(zeroshot=str(folder)) == {"cats_dogs": str(folder)}
    assert named(zeroshot="/a/cats,/a/dogs") == {"cats": "/a/cats", "dogs": "/a/dogs"}


def test_a_known_data_set_is_named_by_a_word_unless_that_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named(zeroshot="cifar10,dtd@train") == {
        "cifar10": "preset:cifar10",
        "dtd": "preset:dtd@train",
    }
    (tmp_path / "cifar10").mkdir()
    assert named(zeroshot="cifar10") == {"cifar10": "cifar10"}


def test_of_two_with_one_name_each_has_the_folder_above_before_it():
    assert named(zeroshot="/a/pets,/b/pets") == {"a_pets": "/a/pets", "b_pets": "/b/pets"}
    found = evaluations_of({"zeroshot": ["/a/pets"]}, taken=["pets"])
    assert list(found) == ["a_pets"]
    with pytest.raises(UserError, match=r"^--sts=/a/x.csv is called a_x, as another .* --config$"):
        named(retrieval="/a/x.csv", sts="/a/x.csv")


def test_a_folder_for_the_other_flag_is_told_as_that(tmp_path):
    with pytest.raises(
        UserError, match=r"^--retrieval=.* without dataset_type.txt, .* --zeroshot$"
    ):
        named(retrieval=str(tmp_path))
    (tmp_path / "dataset_type.txt").write_text("Retrieval\n")
    assert list(named(retrieval=str(tmp_path)).values()) == [str(tmp_path)]
    with pytest.raises(
        UserError, match=r"^--zeroshot=.* is a data set for retrieval .* --retrieval"
    ):
        named(zeroshot=str(tmp_path))
    with pytest.raises(UserError, match=r"^--zeroshot=a,,b names nothing"):
        named(zeroshot="a,,b")


def test_messages_speak_of_flags():
    evaluations = evaluations_of({"zeroshot": ["/none/x"], "sts": ["/none/y"]})

    def told(name):
        with pytest.raises(UserError) as refused:
            evals.create_evaluators({name: evaluations[name]})
        return in_words_of_flags(str(refused.value), evaluations)

    assert told("x").endswith("set --zeroshot to labelled pictures")
    assert told("y") == "/none/y does not exist; set --sts to a file or folder that does"
    said = in_words_of_flags("7 is no name; set config.evals.x.classes", evaluations)
    assert said.endswith(
        "config.evals.x.classes (settings of an evaluation stand in a file for --config)"
    )
