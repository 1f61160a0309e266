"""Whether each tower by itself knows which attribute belongs to which thing.

Koishigarina et al. (2025) find that linear probes read it from CLIP's pictures and from its texts,
while the similarities of the two hardly tell "a red cube and a blue ball" from "a blue cube and a
red ball".
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.evals.checks import check_at_least, check_named, check_types
from cyclip_jax.evals.data.scenes import Scenes, open_scenes
from cyclip_jax.evals.encoders import Encoders, Rows
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.metric import count
from cyclip_jax.evals.statistics.classification import class_rows, ranks_of_label, with_constant
from cyclip_jax.evals.statistics.intervals import mean_with_interval
from cyclip_jax.evals.statistics.logistic import check_regularization, logistic_regression
from cyclip_jax.files import FilePath


@dataclasses.dataclass(frozen=True)
class Binding:
    """Probes of pictures and of texts for the attribute of a thing, beside the similarities.

    For each noun one linear classifier of embeddings tells which attribute the thing of this name
    has. It learns on the scenes of `train` with such a thing.

    Attributes:
      name: of the evaluation.
      train, test: scenes, see `open_scenes`.
      images: folder of the pictures; None is that of each file.
      template: one thing in words, with {attribute} and {noun}.
      regularization: λ of `logistic_regression`.
      max_iterations: of it.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    train: FilePath
    test: FilePath
    images: FilePath | None = None
    template: str = "a {attribute} {noun}"
    regularization: float = 0.01
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        check_types(self)
        key = f"config.evals.{self.name}"
        check_regularization(key, self.regularization)
        check_at_least(self, 1, "max_iterations")
        check_named(self, "train", "test")
        try:
            words = {self.template.format(attribute=a, noun=n) for a in "ab" for n in "cd"}
        except (KeyError, IndexError, ValueError):
            words = set()
        if len(words) < 4:
            raise UserError(f"{key}.template {self.template!r} needs {{attribute}} and {{noun}}")

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives, with intervals, `image_binding` and
          `text_binding`, the share of things whose attribute the probe of their noun tells;
          `chance_…`, what knowing the scene's attributes, and not whose they are, gets;
          `cross_modal_binding`, the share of pictures that are nearer to their caption than to that
          with swapped attributes; `images`, `things`, how many were scored. Outcomes: each of
          `things` has both hits, and as `cluster` its picture; each of `images` has its own.

        Raises:
          UserError: what is wrong with the files.
        """
        key = f"config.evals.{self.name}"
        train, test = (
            open_scenes(getattr(self, part), images=self.images, config_key=f"{key}.{part}")
            for part in ("train", "test")
        )

        def evaluate(encoders, output):
            learned, scored = (self._seen(encoders, scenes) for scenes in (train, test))
            hits = {}
            for tower in ("image", "text"):
                known = learned[tower], learned["things"]
                hits[tower], told = self._hits(*known, scored[tower], scored["things"])
            if not told.any():
                raise UserError(
                    f"{self.test} has no thing that {self.train} has with two attributes"
                )
            counts = np.array([len(things) for things in scored["things"]])
            owners = np.repeat(np.arange(len(counts)), counts)[told]  # of things that were learned
            chance = float((1 / counts)[owners].mean())
            metrics = {
                f"{tower}_binding": mean_with_interval(hit[told], clusters=owners, chance=chance)
                for tower, hit in hits.items()
            }
            nearer = scored["nearer"]
            metrics["cross_modal_binding"] = mean_with_interval(nearer, chance=0.5)
            things = {
                "index": scored["number"][told],
                "cluster": owners,
                **{f"{tower}_binding": hit[told] for tower, hit in hits.items()},
            }
            pictures = {"index": scored["index"], "cross_modal_binding": nearer}
            output.outcomes({"things": things, "images": pictures})
            return {"images": count(len(nearer)), "things": count(int(told.sum())), **metrics}

        def needs():
            texts = [
                captions
                for scenes in (train, test)
                for captions in (
                    scenes.captions(self.template),
                    scenes.swapped_captions(self.template),
                )
            ]
            return Needs([train.images, test.images], texts)

        return Opened(evaluate, needs)

    def _seen(self, encoders: Encoders, scenes: Scenes):
        """What a model makes of the scenes whose picture can be read."""
        images, index = encoders.image_embeds(scenes.images)
        texts, swapped = (
            encoders.text_embeds([captions[row] for row in index])
            for captions in (
                scenes.captions(self.template),
                scenes.swapped_captions(self.template),
            )
        )
        numbers = scenes.numbers
        own, other = (np.sum(images * embeds, axis=1) for embeds in (texts, swapped))
        return {
            "image": images,
            "text": texts,
            "nearer": own > other,
            "index": index,
            "things": [scenes.things[row] for row in index],
            "number": np.concatenate([numbers[row] for row in index]),
        }

    def _hits(
        self, learned: Rows, learned_things, scored: Rows, scored_things
    ) -> tuple[Bool[np.ndarray, "t"], Bool[np.ndarray, "t"]]:
        """Whether each thing's attribute is told, and whether its noun was learned, bool [T]."""
        owners, attributes, nouns = (
            np.array(column)
            for column in zip(
                *((row, *thing) for row, things in enumerate(scored_things) for thing in things),
                strict=True,
            )
        )
        is_hit, is_told = np.zeros((2, len(nouns)), bool)
        for noun in np.unique(nouns):
            classifier, known = self._probe(learned, learned_things, noun)
            if classifier is None:
                continue
            is_told |= nouns == noun
            # An attribute that was never seen with the noun is a miss.
            asked = np.flatnonzero((nouns == noun) & np.isin(attributes, known))
            labels = np.array([known.index(attribute) for attribute in attributes[asked]], int)
            is_hit[asked] = (
                ranks_of_label(with_constant(scored[owners[asked]]), classifier, labels) < 1
            )
        return is_hit, is_told

    def _probe(
        self, embeds: Rows, things, noun: str
    ) -> tuple[Float[np.ndarray, "c d+1"] | None, list[str]]:
        """(rows of a classifier, its attributes) of a noun; None where it has one attribute."""
        found = [
            (row, attribute)
            for row, own in enumerate(things)
            for attribute, other in own
            if other == noun
        ]
        attributes = sorted({attribute for _, attribute in found})
        if len(attributes) < 2:
            return None, []
        labels: Int[np.ndarray, "n"] = np.array([attributes.index(own) for _, own in found])
        features = embeds[[row for row, _ in found]]
        fit = logistic_regression(
            features, labels, len(attributes), max_iterations=self.max_iterations
        )(self.regularization)
        return class_rows(fit.kernel, fit.bias), attributes
