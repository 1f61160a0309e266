"""Which fields of an example are its captions, and which of several is drawn."""

import collections

import numpy as np
import pytest

from cyclip_jax.data.captions import CaptionRule, draw_caption
from cyclip_jax.data.record import Record, Unreadable
from cyclip_jax.errors import UserError


def record_of(values, fields=("alt", "model", "list"), **settings):
    return CaptionRule(fields, **settings).record(b"picture", values)


def test_a_record_holds_every_caption_and_fields_share_their_weights():
    record = record_of([["a"], ["b"], ["c", "d"]], weights=(0.5, 0.2, 0.3))

    assert record == Record(b"picture", ["a", "b", "c", "d"], [0.5, 0.2, 0.15, 0.15])
    assert record_of([["a"], ["b"], ["c", "d"]]).weights == [1, 1, 0.5, 0.5]


def test_blank_captions_and_fields_of_weight_zero_are_none():
    record = record_of([[" \u00a0", "a"], [], ["", "b"]], weights=(1, 1, 2))
    assert (record.captions, record.weights) == (["a", "b"], [1, 2])

    assert record_of([["a"], ["b"], []], weights=(0, 1, 1)).captions == ["b"]
    for values in ([[], [], []], [[""], ["\n"], [" "]]):
        with pytest.raises(Unreadable, match="the caption is empty"):
            record_of(values)
    with pytest.raises(Unreadable, match="the caption is empty"):
        record_of([["a"], [], []], weights=(0, 1, 1))


def test_captions_are_utf8_and_keep_what_stands_around_them():
    assert record_of([["grüße".encode()], [" 猫 "], []]).captions == ["grüße", " 猫 "]
    with pytest.raises(Unreadable) as error:
        record_of([["gr\xfcße".encode("latin-1", "replace")], [], []])
    assert (error.value.reason, error.value.detail) == ("the caption is not UTF-8", "byte 3")


def test_a_number_is_no_caption():
    with pytest.raises(Unreadable, match="the caption is no text: 7"):
        record_of([[7], [], []])


def test_templates_stand_around_every_caption():
    record = record_of(
        [["cat"], [], ["dog", "{}"]],
        weights=(1, 0, 3),
        templates=("a photo of a {}.", "{}, drawn; {}"),
    )

    assert record.captions == [
        "a photo of a cat.",
        "cat, drawn; cat",
        "a photo of a dog.",
        "dog, drawn; dog",
        "a photo of a {}.",
        "{}, drawn; {}",
    ]
    assert record.weights == [1, 1, 1.5, 1.5, 1.5, 1.5]
    with pytest.raises(UserError, match=r"'a photo' in config\.data\.templates has no \{\}"):
        CaptionRule("label", templates=("{}", "a photo"))


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, -1), (0, 0, 0), (1, 1, 1, 1)])
def test_weights_that_do_not_fit_the_fields_are_refused(weights):
    with pytest.raises(UserError, match=r"caption_weights is .* for 3 field\(s\) of captions, alt"):
        record_of([["a"], ["b"], ["c"]], weights=weights)


def test_the_drawn_caption_stays_what_it_was():
    """Golden values: a change here would change what a resumed run sees."""
    record = Record(b"", list("abcd"), [4, 1, 2, 1])

    assert "".join(draw_caption(record, 0, epoch, 0) for epoch in range(12)) == "aaabdaccabac"
    assert "".join(draw_caption(record, 7, 1, index) for index in range(12)) == "abbbadccaccc"


def test_captions_are_drawn_by_their_weights_over_epochs_and_examples():
    record = Record(b"", list("abcd"), [5, 0.5, 1.5, 3])
    over_epochs = [draw_caption(record, 1, epoch, 17) for epoch in range(10_000)]
    over_examples = [draw_caption(record, 1, 2, index) for index in range(10_000)]

    for drawn in (over_epochs, over_examples):
        shares = [collections.Counter(drawn)[caption] / 10_000 for caption in "abcd"]
        # Four standard deviations of the commonest.
        np.testing.assert_allclose(shares, [0.5, 0.05, 0.15, 0.3], atol=0.02)


def test_a_draw_depends_on_seed_epoch_and_index_alone():
    record = Record(b"one", list("abcdefgh"), [1] * 8)
    draws = [draw_caption(record, 3, epoch, index) for epoch in range(9) for index in range(30)]
    other_picture = record._replace(image=b"two")

    for changed, others in [
        (draws, [draw_caption(other_picture, 3, e, i) for e in range(9) for i in range(30)]),
        (None, [draw_caption(record, 4, e, i) for e in range(9) for i in range(30)]),
        (None, [draw_caption(record, 3, i, e) for e in range(9) for i in range(30)]),
    ]:
        same = np.mean([one == other for one, other in zip(draws, others, strict=True)])
        assert same == 1 if changed else same < 0.25
    assert draw_caption(record, 3, np.int64(4), np.int64(5)) == draw_caption(record, 3, 4, 5)
    assert draw_caption(Record(b"", ["only"], [0.1]), 0, 0, 0) == "only"


REWRITTEN = {"fields": ("caption", "chatgpt", "bard"), "weights": (0.5, 0.3, 0.2)}


@pytest.mark.parametrize(
    "texts, shares",
    [
        ([["a"], ["b"], ["c"]], {"a": 0.5, "b": 0.3, "c": 0.2}),
        ([["a"], [""], ["c"]], {"a": 5 / 7, "c": 2 / 7}),  # a rewrite is missing
        ([["a"], [], [" "]], {"a": 1.0}),
    ],
)
def test_ten_thousand_draws_have_the_shares_of_the_weights(texts, shares):
    record = record_of(texts, **REWRITTEN)
    draws = collections.Counter(draw_caption(record, 3, n // 100, n % 100) for n in range(10_000))
    for text, share in shares.items():
        sigma = (10_000 * share * (1 - share)) ** 0.5
        assert abs(draws[text] - 10_000 * share) <= 4 * sigma
    assert draws.keys() == shares.keys()
