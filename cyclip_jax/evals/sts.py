"""Semantic textual similarity: whether the text tower finds alike what people find alike."""

import dataclasses
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.evals.checks import check_named, check_types
from cyclip_jax.evals.data.pairs import distinct
from cyclip_jax.evals.data.sentence_pairs import (
    SentencePairs,
    read_documents,
    read_senteval,
    read_table,
    read_whole_benchmark,
)
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.known_metrics import KNOWN, known_about
from cyclip_jax.evals.metric import count
from cyclip_jax.evals.statistics.intervals import floats, interval, mean_with_interval
from cyclip_jax.evals.statistics.rank_correlation import Spearman
from cyclip_jax.evals.statistics.uniformity import gaussian_uniformity
from cyclip_jax.evals.statistics.unit_norm import unit_rows
from cyclip_jax.files import FilePath, how_written

_SPLITS = ("test", "dev")
_POSITIVE_FROM = 4.0  # of STS-B's scale from 0 to 5
# What float64 can tell apart in float32's embeddings, and less: a sentence with itself has 1, and
# not by rounding a little more than another.
_DIGITS = 9
# What a model whose run has diverged has too: NaN.
_OF_EVERY_MODEL = ("spearman", "text_uniformity")


@dataclasses.dataclass(frozen=True)
class Sts:
    """Compares cosines of sentences with the scores that people gave them.

    The sentences go through the model's own tokenizer and text tower, and nothing is fitted on the
    embeddings. `sentences` is one of these:

    - SentEval's folder data/downstream. It has the tasks sts12 to sts16, stsb and sickr; those that
      are not there are left out. All subsets of a year count as one, the setting "all" of Gao et
      al. 2021, and 2013 has no SMT. Pairs without a score are left out.
    - A CSV or TSV file of two sentences and a score. Lines at its top that begin with # are
      comments, and the last of them may name the columns.
    - With `similarities`, a file with a document a line.

    Attributes:
      name: of the evaluation, for messages.
      sentences: a folder or a file, as above.
      similarities: file with a row of N numbers for each of the N documents in `sentences`, of
        which those above the diagonal count.
      split: of SentEval's folder, "test" or "dev"; the years 2012 to 2016 have only the former.
      delimiter: between the columns of a table; default a comma in a .csv, else a tab.
      sentence1_key, sentence2_key, score_key: names of a table's columns.
      positive_from: pairs scored above it are positives of the alignment; default 4.0 for STS-B,
        and a table then has no alignment.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    sentences: FilePath
    similarities: FilePath | None = None
    split: str = "test"
    delimiter: str | None = None
    sentence1_key: str = "sentence1"
    sentence2_key: str = "sentence2"
    score_key: str = "score"
    positive_from: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_named(self, "sentences", "similarities")
        key = f"config.evals.{self.name}"
        if self.split not in _SPLITS:
            raise UserError(
                f"{key}.split is {self.split!r}; choose {' or '.join(map(repr, _SPLITS))}"
            )
        if self.delimiter not in (None, "\\t") and len(self.delimiter) != 1:
            raise UserError(
                f"{key}.delimiter is {self.delimiter!r}; set it to one character, e.g. ',' or '\\t'"
            )

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives `spearman`, the rank correlation of the
          cosines with the scores, and of a folder its mean over the tasks; there also
          `<task>_spearman`, and with `_wmean` behind it the mean over a task's subsets weighted by
          their sizes, where it has several, and the mean of these over the tasks; `text_uniformity`
          of all different sentences, of a folder those of all of STS-B (see `gaussian_uniformity`);
          `text_alignment`, the mean ‖t − t⁺‖² over positives, of a folder STS-B's (Wang and Isola
          2020, eq. 1); `pairs` and `sentences`: what was scored. Intervals are over pairs, or over
          sentences where there are half as many or fewer. Outcomes: each pair, of `pairs` or of
          <task>, has its part in the correlation (see `Spearman.parts`), its `cosine`, `score` and
          `subset`, and the numbers of its sentences, `first` and `second`; each of `positives` has
          its part in the alignment.

        Raises:
          UserError: what is wrong with the data.
        """
        tasks, measured = self._read()
        is_folder = "" not in tasks
        positive_from = _POSITIVE_FROM if is_folder else np.inf
        if self.positive_from is not None:
            positive_from = self.positive_from

        all_pairs = [*tasks.values(), *([] if measured is None else [measured])]
        texts = [text for pairs in all_pairs for text in (*pairs.first, *pairs.second)]
        texts = list(dict.fromkeys(texts))

        def evaluate(encoders, output):
            embeds = encoders.text_embeds(texts).astype(np.float64)
            if not np.isfinite(embeds).all():  # the run has diverged
                return {name: KNOWN[name].metric(np.nan) for name in _OF_EVERY_MODEL}
            embeds = unit_rows(embeds)
            row_of = {text: row for row, text in enumerate(texts)}
            scored = {task: _scored(pairs, row_of, embeds) for task, pairs in tasks.items()}
            metrics = _correlations(scored) if is_folder else _correlation(scored[""])
            outcomes = {task or "pairs": _outcomes(task, its) for task, its in scored.items()}
            if measured is not None:
                found = _scored(measured, row_of, embeds)
                rows = np.unique([found.first, found.second])
                uniformity = gaussian_uniformity(embeds[rows])
                metrics["text_uniformity"] = KNOWN["text_uniformity"].metric(uniformity)
                positives = np.flatnonzero(found.scores > positive_from)
                if len(positives):
                    distances = 2 - 2 * found.cosines[positives]  # ‖t − t⁺‖²
                    about = KNOWN["text_alignment"]
                    metrics["text_alignment"] = mean_with_interval(distances, about=about)
                    outcomes["positives"] = {"index": positives, "text_alignment": distances}
            output.outcomes(outcomes)
            sentences = {row for its in scored.values() for row in (*its.first, *its.second)}
            return {
                **metrics,
                "pairs": count(sum(len(its.scores) for its in scored.values())),
                "sentences": count(len(sentences)),
            }

        return Opened(evaluate, lambda: Needs([], [texts]))

    def _read(self):
        """({task: SentencePairs}, those of uniformity and alignment or None).

        The only task of what is no folder is called "".
        """
        key = f"config.evals.{self.name}"
        place = epath.Path(self.sentences)
        if not place.exists():
            raise UserError(
                f"{self.sentences} does not exist{how_written(self.sentences)}; set "
                f"{key}.sentences to a file or folder that does"
            )
        if place.is_dir():
            if self.similarities is not None:
                raise UserError(
                    f"{key}.similarities belongs to a file with a document a line, and "
                    f"{key}.sentences is the folder {self.sentences}; leave one of them out"
                )
            tasks = read_senteval(self.sentences, self.split, config_key=f"{key}.sentences")
            return tasks, read_whole_benchmark(self.sentences)
        if self.split != "test":
            raise UserError(
                f"{self.sentences} is one file and has no split {self.split!r}; leave {key}.split "
                "out"
            )
        if self.similarities is not None:
            pairs = read_documents(self.sentences, self.similarities)
        else:
            usual = "," if self.sentences.lower().endswith(".csv") else "\t"
            pairs = read_table(
                self.sentences,
                delimiter=(self.delimiter or usual).replace("\\t", "\t"),
                sentence1_key=self.sentence1_key,
                sentence2_key=self.sentence2_key,
                score_key=self.score_key,
                config_key=key,
            )
        return {"": pairs}, pairs


class _Scored(NamedTuple):
    """N pairs whose sentences are embedded.

    Attributes:
      scores, cosines: float64 [N].
      first, second: numbers of the sentences among all different ones, int [N].
      subsets: names, [N].
    """

    scores: Float[np.ndarray, "n"]
    cosines: Float[np.ndarray, "n"]
    first: Int[np.ndarray, "n"]
    second: Int[np.ndarray, "n"]
    subsets: np.ndarray


def _scored(pairs: SentencePairs, row_of, embeds):
    first, second = (
        np.array([row_of[text] for text in texts]) for texts in (pairs.first, pairs.second)
    )
    cosines = np.einsum("nd,nd->n", embeds[first], embeds[second]).round(_DIGITS)
    return _Scored(np.array(pairs.scores), cosines, first, second, np.array(pairs.subsets))


def _correlation(scored):
    """{"spearman": Metric} of a table or documents."""
    correlation = Spearman(scored.scores, scored.cosines)
    n = len(scored.scores)
    sentences, _ = distinct([*scored.first, *scored.second])
    m = sentences.max() + 1
    if 2 * m <= n:
        # Pairs that share a sentence are no new data. A sentence that is drawn twice makes no pair
        # with itself: that would be a perfect one that nobody scored.
        bounds = interval(lambda drawn: correlation(drawn[sentences[:n]] * drawn[sentences[n:]]), m)
    else:
        bounds = interval(correlation, n)
    return {"spearman": KNOWN["spearman"].metric(correlation(np.ones(n)), floats(bounds))}


def _correlations(scored):
    """{name: Metric} of several tasks, and of the means over them."""
    ends = np.cumsum([len(its.scores) for its in scored.values()])
    measures = [_of_task(its) for its in scored.values()]

    def all_of(weights):
        of_tasks = [
            task(own) for task, own in zip(measures, np.split(weights, ends[:-1]), strict=True)
        ]
        return np.array([np.mean(of_tasks, axis=0), *of_tasks])  # [1 + tasks, 2]

    values = all_of(np.ones(ends[-1]))
    bounds = np.stack(interval(all_of, int(ends[-1])), axis=-1)  # [1 + tasks, 2, low and high]
    names = ["spearman", *(f"{task}_spearman" for task in scored)]
    metrics = {}
    for name, its_values, its_bounds in zip(names, values, bounds, strict=True):
        for own, value, pair in zip((name, f"{name}_wmean"), its_values, its_bounds, strict=True):
            metrics[own] = known_about(own).metric(float(value), floats(pair))
    for task, its in scored.items():
        if len(set(its.subsets)) == 1:
            del metrics[f"{task}_spearman_wmean"]  # which is the same
    return metrics


def _of_task(scored):
    """A function of weights [N] -> (Spearman, mean of the subsets' by their sizes)."""
    whole = Spearman(scored.scores, scored.cosines)
    numbers = np.unique(scored.subsets, return_inverse=True)[1]
    rows_of = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
    parts = [(rows, Spearman(scored.scores[rows], scored.cosines[rows])) for rows in rows_of]

    def both(weights):
        found = np.array([part(weights[rows]) for rows, part in parts])
        # In few pairs a draw may have one score alone.
        sizes = np.where(np.isnan(found), 0, [weights[rows].sum() for rows, _ in parts])
        mean = sizes @ np.nan_to_num(found) / sizes.sum() if sizes.any() else np.nan
        return whole(weights), mean

    return both


def _outcomes(task, scored):
    name = f"{task}_spearman" if task else "spearman"
    return {
        "index": np.arange(len(scored.scores)),
        name: Spearman(scored.scores, scored.cosines).parts(),
        "cosine": scored.cosines,
        "score": scored.scores,
        "subset": scored.subsets,
        "first": scored.first,
        "second": scored.second,
    }
