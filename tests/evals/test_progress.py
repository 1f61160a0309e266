"""What evaluations say of their cost before they begin, and of how far they are."""

import contextlib
import io
import re
import threading

import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.evals.encoders import IMAGES, TEXTS
from cyclip_jax.evals.evaluator import Needs, Opened
from cyclip_jax.evals.progress import Progress, rows_to_embed
from cyclip_jax.runtime.progress import duration_in_words, progress_bar


def test_what_evaluations_have_in_common_counts_once():
    pictures = Pictures(10)
    needs = [
        Needs([pictures, Pictures(10)], [["a", "b", "a"]]),
        Needs([pictures, Pictures(5)], [["a", "b", "a"], ["a", "c"]]),
    ]
    assert rows_to_embed(needs) == {IMAGES: 15, TEXTS: 4}


class Time:
    """A clock that is moved by hand."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


class Pictures:
    """As many pictures as are asked for, as an ImageSet counts them."""

    def __init__(self, count):
        self.identity, self.source = (count,), range(count)


def needing(images, *texts):
    return Opened(lambda encoders, output: {}, lambda: Needs(images, texts))


def heard(evaluators):
    """(Progress, what it said, titles and units of its bars, its clock)."""
    said, bars, now = [], [], Time()

    @contextlib.contextmanager
    def bar(total, done, unit, *, title):
        bars.append((title, unit, total))
        yield lambda more, dropped: None

    return Progress(evaluators, say=said.append, bar=bar, now=now), said, bars, now


def test_the_cost_is_said_before_and_about_how_long_after_the_first_batches():
    evaluators = {"a": needing([Pictures(1000)], ["x", "y", "x"]), "b": needing([Pictures(2000)])}
    progress, said, bars, now = heard(evaluators)
    progress.say_costs()
    assert said == ["2 evaluations: 3,000 images and 2 texts to embed"]
    progress.begin("a")
    with progress.embedding(TEXTS, 2) as advance:
        advance(2)
    with progress.embedding(IMAGES, 1000) as advance:
        for seconds in (500, 2, 2, 2):  # the first one is compiled
            assert len(said) == 1
            now.seconds += seconds
            advance(100)
    assert said[1:] == ["about 52 s to embed the 2,600 images that are left; scores come on top"]
    progress.begin("b")
    with progress.embedding(IMAGES, 2000) as advance:
        for _ in range(20):
            advance(100)
    assert len(said) == 2  # once
    assert bars == [
        ("1 of 2, a", "texts", 2),
        ("1 of 2, a", "images", 1000),
        ("2 of 2, b", "images", 2000),
    ]


def test_of_texts_alone_the_time_is_told_too_and_of_unknown_texts_that_they_come_on_top():
    progress, said, _, now = heard({"a": needing([], [str(n) for n in range(100)])})
    progress.say_costs()
    progress.begin("a")
    with progress.embedding(TEXTS, 100) as advance:
        for _ in range(4):
            now.seconds += 60
            advance(10)
    assert said == [
        "1 evaluation: 0 images and 100 texts to embed",
        "about 6 min to embed the 60 texts that are left; scores come on top",
    ]
    progress, said, _, now = heard({"a": needing([Pictures(50)], ["a text"])})
    progress.say_costs()
    with progress.embedding(IMAGES, 50) as advance:
        for _ in range(4):
            now.seconds += 6
            advance(10)
    assert said[1:] == [
        "about 6 s to embed the 10 images that are left; texts and scores come on top"
    ]


def test_a_first_batch_that_takes_long_is_said_to_wait_for_the_compiler(monkeypatch):
    monkeypatch.setattr("cyclip_jax.evals.progress._COMPILING", 0.01)
    progress, said, _, now = heard({"a": needing([Pictures(3)], ["x"])})
    is_said = threading.Event()
    progress._say = lambda text: (said.append(text), is_said.set())
    for kind in (IMAGES, IMAGES):
        with progress.embedding(kind, 3) as advance:
            assert is_said.wait(10)
            now.seconds += 30
            advance(3)
    assert said == [
        "the first images wait for the compiler, which the others do not",
        "the first images are done after 30 s",
    ]


def test_bars_are_bars_in_a_terminal_and_whole_lines_elsewhere(monkeypatch):
    shown = {}
    for is_terminal in (True, False):
        file = io.StringIO()
        file.isatty = lambda is_terminal=is_terminal: is_terminal
        monkeypatch.setattr("sys.stderr", file)
        with progress_bar(200, 50, "images", title="1 of 2, val") as progress:
            progress(100, 3)
        shown[is_terminal] = file.getvalue()
    assert shown[True].count("\r") == 2 and "| 150/200 [00:00<00:00, " in shown[True]
    first, last = shown[False].splitlines()
    assert first == "1 of 2, val: 50 of 200 images, ? images/s, ? left"
    assert re.fullmatch(r"1 of 2, val: 150 of 200 images, .* images/s, 00:00 left, 3 dropped", last)
    assert "\r" not in shown[False]


def test_data_that_cannot_be_counted_are_told_and_end_nothing():
    def broken():
        raise UserError("the file is gone")

    other = Opened(lambda encoders, output: {}, broken)
    progress, said, *_ = heard({"a": needing([Pictures(3)]), "b": other, "c": lambda *_: {}})
    progress.say_costs()
    assert said == ["3 evaluations: 3 images and 0 texts to embed, besides those of b, c"]


def test_other_processes_say_nothing():
    said = []
    progress = Progress({"a": needing([Pictures(3)])}, is_heard=False, say=said.append)
    progress.say_costs()
    with progress.embedding(IMAGES, 3) as advance:
        for _ in range(9):
            advance(1)
    assert said == []


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.2, "less than 1 s"),
        (44.6, "45 s"),
        (59.7, "1 min"),
        (3 * 3600 + 20 * 60 + 5, "3 h 20 min"),
        (7200, "2 h"),
        (24 * 3600 - 1, "1 day"),
        (53 * 3600, "2 days 5 h"),
    ],
)
def test_durations_are_words_of_two_units_at_most(seconds, words):
    assert duration_in_words(seconds) == words
