"""RandAugment and AutoAugment, against torchvision."""

import functools

import numpy as np
import pytest
import skimage.data
import tensorflow as tf

from cyclip_jax.data import augment, images
from tests.pytorch import torch  # before torchvision, which does not load without it

# isort: split
from torchvision.transforms import InterpolationMode, autoaugment

# Of odd sides that differ, so that mixing up the axes shows.
PICTURE = np.ascontiguousarray(skimage.data.chelsea()[20:205, 30:241])
SIGNED = [name for name, operation in augment.OPERATIONS.items() if operation.has_sign]
GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def torchvision_operation(name, picture, magnitude):
    channels_first = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    result = autoaugment._apply_op(
        channels_first, name, magnitude, InterpolationMode.NEAREST, fill=None
    )
    return result.numpy().transpose(1, 2, 0)


def in_torchvisions_units(name, magnitude, picture):
    """Translations are shares of the side here, and pixels there."""
    sides = {"TranslateX": picture.shape[1], "TranslateY": picture.shape[0]}
    return magnitude * sides.get(name, 1)


@functools.cache
def operation(name):
    return tf.function(
        functools.partial(augment.apply_operation, name),
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([])],
        autograph=False,  # which is not needed and half of the time
    )


def levels(name):
    """A few magnitudes, with either sign where there is one.

    At none of them does a shear put rows midway between two, where rounding errors choose.
    """
    magnitudes = augment.magnitude_table([name], augment.RAND_AUGMENT_LEVELS)[0, [0, 3, 9, 17, 30]]
    return [*magnitudes, *(-magnitudes if name in SIGNED else ())]


@pytest.mark.parametrize("name", [name for name in augment.OPERATIONS if name not in GEOMETRY])
def test_an_operation_on_colours_is_torchvisions_to_one_grey_level(name):
    for magnitude in levels(name):
        image = operation(name)(PICTURE, magnitude).numpy()
        expected = torchvision_operation(name, PICTURE, float(magnitude))
        difference = np.abs(image.astype(int) - expected)

        assert image.dtype == np.uint8
        # torchvision's sharpness also darkens some of the outermost pixels, by rounding down.
        assert difference.max() <= 1 and (difference > 0).mean() < 0.03, magnitude


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_torchvisions_but_for_one_pixel_in_two_hundred(name):
    for magnitude in levels(name):
        image = operation(name)(PICTURE, magnitude).numpy()
        there = in_torchvisions_units(name, float(magnitude), PICTURE)
        expected = torchvision_operation(name, PICTURE, there)

        assert np.any(image != expected, axis=-1).mean() < 0.005, magnitude


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_every_operation_but_the_identity_changes_the_picture(name):
    strongest = augment.magnitude_table([name], augment.RAND_AUGMENT_LEVELS)[0, -1]
    image = operation(name)(PICTURE, strongest).numpy()

    assert (np.mean(image != PICTURE) > 0.1) == (name != "Identity")


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_pictures_of_one_value_and_of_few_pixels_go_through_every_operation(name):
    for picture in (np.full((4, 5, 3), 77, np.uint8), PICTURE[:1, :1], PICTURE[:2, :40]):
        for magnitude in levels(name):
            image = operation(name)(picture, magnitude).numpy()
            assert image.shape == picture.shape
            if name in GEOMETRY:
                assert {*np.unique(image)} <= {0, *np.unique(picture)}
            else:
                expected = torchvision_operation(name, picture, float(magnitude))
                assert np.abs(image.astype(int) - expected).max() <= 1, (picture.shape, magnitude)


@pytest.mark.parametrize(
    ("theirs", "count"),
    [
        (autoaugment.RandAugment(), augment.RAND_AUGMENT_LEVELS),
        (autoaugment.AutoAugment(), augment.AUTO_AUGMENT_LEVELS),
    ],
)
def test_magnitudes_are_torchvisions(theirs, count):
    space = theirs._augmentation_space(count, PICTURE.shape[:2])
    assert len(space) == 14
    for name, (magnitudes, has_sign) in space.items():
        ours = augment.magnitude_table([name], count)[0]
        there = in_torchvisions_units(name, ours, PICTURE)

        np.testing.assert_allclose(there, np.broadcast_to(magnitudes, [count]), rtol=1e-6)
        assert has_sign == augment.OPERATIONS[name].has_sign, name


def test_the_policy_is_the_published_one_as_torchvision_has_it():
    assert list(augment.IMAGENET_POLICY) == autoaugment.AutoAugment().policies


@functools.cache
def policy(name):
    return tf.function(
        getattr(augment, name),
        input_signature=[tf.TensorSpec([64, 64, 3], tf.uint8), tf.TensorSpec([2], tf.int64)],
        autograph=False,
    )


@pytest.mark.parametrize("name", ["rand_augment", "auto_augment"])
def test_a_policy_is_a_pure_function_of_its_seed(name):
    picture = PICTURE[60:124, 60:124]

    def augmented(index):
        return policy(name)(picture, images.example_seed(0, 0, index))

    results = [augmented(index) for index in range(40)]
    for index in (0, 7, 39):
        np.testing.assert_array_equal(augmented(index), results[index])
    assert results[0].shape == (64, 64, 3) and results[0].dtype == tf.uint8
    assert (
        len({result.numpy().tobytes() for result in results}) > 20
    )  # a pair may leave it as it is


def test_rand_augment_applies_so_many_operations_out_of_fourteen(monkeypatch):
    """With operations that write their number into the picture's next free pixel."""

    def write(number):
        def apply(image, _):
            free = tf.reduce_sum(tf.cast(image[0, :, 0] > 0, tf.int32))
            return tf.tensor_scatter_nd_update(
                image, [[0, free, 0]], [tf.constant(number, tf.uint8)]
            )

        return augment.Operation(apply)

    names = list(augment.OPERATIONS)
    fakes = {name: write(number) for number, name in enumerate(names, 1)}
    monkeypatch.setattr(augment, "OPERATIONS", fakes)
    blank = tf.zeros([1, 4, 3], tf.uint8)
    apply = tf.function(lambda seed: augment.rand_augment(blank, seed), autograph=False)
    drawn = np.array([apply(images.example_seed(0, 0, i))[0, :, 0] for i in range(200)])

    assert np.all(drawn[:, :2] > 0) and np.all(drawn[:, 2:] == 0)
    counts = np.bincount(drawn[:, :2].ravel(), minlength=16)[1:]
    assert counts[names.index("Invert")] == 0
    others = np.delete(counts, names.index("Invert"))
    assert others.min() > 12 and others.max() < 50  # 400 draws of 14, 29 each
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.2


def test_auto_augment_applies_pairs_of_the_policy_with_their_chances_and_signs(monkeypatch):
    """With a policy of one pair, whose operations move a white column."""
    monkeypatch.setattr(
        augment, "IMAGENET_POLICY", ((("TranslateX", 0.8, 9), ("TranslateY", 0.3, 9)),)
    )
    picture = np.zeros((33, 33, 3), np.uint8)
    picture[16, 16] = 255
    apply = tf.function(lambda seed: augment.auto_augment(picture, seed), autograph=False)
    places = [np.argwhere(apply(images.example_seed(0, 0, i))[..., 0])[0] for i in range(200)]
    moved = np.array(places) - 16  # (down, right)

    assert set(np.abs(moved[:, 0])) == set(np.abs(moved[:, 1])) == {0, int(33 * 150 / 331)}
    assert abs(np.mean(moved[:, 1] != 0) - 0.8) < 0.1
    assert abs(np.mean(moved[:, 0] != 0) - 0.3) < 0.1
    for axis in (0, 1):
        share_forward = np.mean(moved[:, axis][moved[:, axis] != 0] > 0)
        assert abs(share_forward - 0.5) < 0.2
