"""What evaluations cost, said before they begin, and how far they are."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from cyclip_jax.errors import UserError
from cyclip_jax.evals.encoders import IMAGES, TEXTS
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.runtime.progress import duration_in_words, progress_bar, say_above_bars

_TIMED = 3  # batches from which the rest is told; the first of a data set opens files, or compiles
_TELLING = 5.0  # seconds; nobody needs to be told of less
_COMPILING = 5.0  # seconds that the first batch may take without a word
_KINDS = (IMAGES, TEXTS)


class Progress:
    """Tells a person how much there is to embed, about how long it takes, and how far it is.

    Args:
      evaluators: all that will be run, in their order.
      is_heard: whether anything is said: true on process 0 alone.
      say: shows a line.
      bar: shows a bar, as `progress_bar` does.
      now: the time in seconds.
    """

    def __init__(
        self,
        evaluators: Mapping[str, Evaluator],
        *,
        is_heard: bool = True,
        say: Callable[[str], None] = say_above_bars,
        bar: Callable[..., contextlib.AbstractContextManager] = progress_bar,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._evaluators = evaluators
        self._is_heard = is_heard
        self._say, self._bar, self._now = say, bar, now
        self._title = ""
        self._left: dict[str, int] = dict.fromkeys(_KINDS, 0)
        # Of each kind the batches, rows and seconds that tell how long a row takes.
        self._timed: dict[str, tuple[int, int, float]] = dict.fromkeys(_KINDS, (0, 0, 0.0))
        self._has_estimated = False
        self._compiled: set[str] = set()

    def say_costs(self) -> None:
        """Says how many pictures and texts have to be embedded in all."""
        if not self._is_heard:
            return
        needs, unknown = {}, []
        for name, evaluator in self._evaluators.items():
            try:
                needs[name] = evaluator.needs() if isinstance(evaluator, Opened) else None
            except (UserError, OSError):  # which the evaluation itself will tell
                needs[name] = None
            if needs[name] is None:
                unknown.append(name)
        self._left = rows_to_embed([one for one in needs.values() if one is not None])
        count = len(self._evaluators)
        told = " and ".join(f"{self._left[kind]:,} {kind}" for kind in _KINDS)
        head = "1 evaluation" if count == 1 else f"{count} evaluations"
        tail = f", besides those of {', '.join(unknown)}" if unknown else ""
        self._say(f"{head}: {told} to embed{tail}")

    def begin(self, name: str) -> None:
        """Takes note of the evaluation that runs from now on."""
        number = list(self._evaluators).index(name) + 1
        self._title = f"{number} of {len(self._evaluators)}, {name}"

    @contextlib.contextmanager
    def embedding(self, kind: str, total: int) -> Iterator[Callable[[int], None]]:
        """A function that is told of every batch's rows, while so many of a kind are embedded."""
        if not self._is_heard:
            yield lambda rows: None
            return
        last, compiling = None, self._compiling(kind)
        with self._bar(total, 0, kind, title=self._title) as progress, compiling as compiled:

            def advance(rows: int) -> None:
                nonlocal last
                compiled()
                progress(rows, 0)
                self._left[kind] = max(self._left[kind] - rows, 0)
                now = self._now()
                if last is not None:
                    batches, timed_rows, seconds = self._timed[kind]
                    self._timed[kind] = batches + 1, timed_rows + rows, seconds + now - last
                last = now
                self._estimate_once()

            yield advance

    @contextlib.contextmanager
    def _compiling(self, kind):
        """A function to call when the first batch is done; says what keeps it, if it takes long."""
        if kind in self._compiled:
            yield lambda: None
            return
        began, is_long = self._now(), threading.Event()

        def tell() -> None:
            is_long.set()
            self._say(f"the first {kind} wait for the compiler, which the others do not")

        timer = threading.Timer(_COMPILING, tell)
        timer.daemon = True
        timer.start()

        def compiled() -> None:
            if kind not in self._compiled and is_long.is_set():
                self._say(f"the first {kind} are done after {self._now() - began:.0f} s")
            self._compiled.add(kind)
            timer.cancel()

        try:
            yield compiled
        finally:
            timer.cancel()

    def _estimate_once(self):
        """Says about how long the rest takes, once it is known of what there is most of."""
        most = max(_KINDS, key=lambda kind: (self._left[kind] > 0, kind == IMAGES))
        if self._has_estimated or self._timed[most][0] < _TIMED or not self._left[most]:
            return
        self._has_estimated = True
        known = [kind for kind in _KINDS if self._left[kind] and self._timed[kind][0]]
        seconds = sum(
            self._left[kind] * self._timed[kind][2] / self._timed[kind][1] for kind in known
        )
        if seconds < _TELLING:
            return
        told = " and ".join(f"{self._left[kind]:,} {kind}" for kind in known)
        others = [f"{kind} and " for kind in _KINDS if self._left[kind] and kind not in known]
        self._say(
            f"about {duration_in_words(seconds)} to embed the {told} that are left; "
            f"{''.join(others)}scores come on top"
        )


def rows_to_embed(needs: list[Needs]) -> dict[str, int]:
    """{kind: how many are embedded}; what several evaluations have in common counts once."""
    images = {one.identity: len(one.source) for own in needs for one in own.images}
    texts = {tuple(some) for own in needs for some in own.texts}
    return {IMAGES: sum(images.values()), TEXTS: sum(len(set(some)) for some in texts)}
