"""LABCLIP: how much better texts are told apart once a matrix is learned for their embeddings.

Koishigarina et al. (2025) find that both towers know which attribute belongs to which object, and
that a linear map of the text embeddings brings most of that into their similarities.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float

from cyclip_jax.data.order import order
from cyclip_jax.data.places import DataPath
from cyclip_jax.data.record import Record
from cyclip_jax.data.second_views import NEGATIVE_CAPTIONS, SecondCaption, SecondViews
from cyclip_jax.errors import UserError, check_known
from cyclip_jax.evals.checks import check_at_least, check_named, check_types
from cyclip_jax.evals.data.choices import check_layout, open_choices
from cyclip_jax.evals.data.image_set import ImageSet, first_captions
from cyclip_jax.evals.data.labelled import check_images, open_images
from cyclip_jax.evals.encoders import Encoders, Rows
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.metric import count
from cyclip_jax.evals.statistics.choices import score_choices
from cyclip_jax.evals.statistics.unit_norm import unit_rows
from cyclip_jax.files import FilePath
from cyclip_jax.losses.contrastive import info_nce


@dataclasses.dataclass(frozen=True)
class Labclip:
    """Learns a matrix for text embeddings on pairs, and scores choices before and after.

    Attributes:
      name: of the evaluation.
      train: pairs to learn on, as in config.data.train.
      examples, images, layout, category_key: the choices, see `Compositional`.
      negatives: wrong captions of the pairs: "swap", "given" or "none", see config.data.
      negative_caption_key: where given ones stand.
      synonyms: folder of WordNet's files for "swap", see config.data.
      epochs, batch_size, learning_rate, seed: see `train_text_map`; the paper's.
      image_key, caption_key: of the pairs, see config.data.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    train: DataPath
    examples: FilePath
    images: FilePath | None = None
    layout: str = "choice"
    category_key: str | None = None
    negatives: str = "swap"
    negative_caption_key: str | None = None
    synonyms: FilePath | None = None
    epochs: int = 10
    batch_size: int = 1024
    learning_rate: float = 1e-3
    seed: int = 0
    image_key: str | None = None
    caption_key: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_named(self, "examples")
        check_layout(self.layout, f"config.evals.{self.name}")
        check_known(f"config.evals.{self.name}.negatives", self.negatives, NEGATIVE_CAPTIONS)
        check_at_least(self, 1, "epochs", "batch_size")
        check_at_least(self, 0, "learning_rate", "seed")
        if (self.negatives == "given") != (self.negative_caption_key is not None):
            raise UserError(
                f"config.evals.{self.name}.negatives 'given' and "
                f"config.evals.{self.name}.negative_caption_key belong together; set both, or "
                "neither"
            )
        check_images(self.train, config_key=f"config.evals.{self.name}.train", **self._keys())

    def _views(self):
        return SecondViews(
            negative_caption=self.negatives,
            negative_caption_key=self.negative_caption_key,
            synonyms=self.synonyms,
        )

    def _keys(self):
        keys = ("image_key", "caption_key", "negative_caption_key")
        return {key: getattr(self, key) for key in keys}

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives what `compositional` gives, with the
          matrix, the same before it as `<metric>_before`, and `train_pairs`. `text_map.npz` has the
          matrix, which `python -m cyclip_jax.export --text_map` folds into a model. Outcomes: as of
          `compositional`, and those before.

        Raises:
          UserError: what is wrong with the data.
        """
        config_key = f"config.evals.{self.name}"
        pairs = open_images(self.train, config_key=f"{config_key}.train", **self._keys())
        negative = self._views().negative()
        choices = open_choices(
            self.examples,
            images=self.images,
            layout=self.layout,
            category_key=self.category_key,
            config_key=config_key,
        )

        def evaluate(encoders, output):
            text_map, learned_on = self._learned(encoders, pairs, negative)

            def mapped(texts):
                return unit_rows(encoders.text_embeds(texts) @ text_map)

            before = score_choices(choices, encoders.image_embeds, encoders.text_embeds)
            after = score_choices(choices, encoders.image_embeds, mapped)
            output.json("categories", after.table)
            output.arrays("text_map", text_map=text_map)
            scores = before.metrics.keys() - {"examples", "images", "captions"}
            hits = {f"{n}_before": before.outcomes[n] for n in scores & before.outcomes.keys()}
            output.outcomes({"examples": {**after.outcomes, **hits}})
            earlier = {
                f"{name}_before": dataclasses.replace(before.metrics[name], is_headline=False)
                for name in before.metrics
                if name in scores
            }
            return {**after.metrics, **earlier, "train_pairs": count(learned_on)}

        def needs():
            own = first_captions(pairs)
            # Each one's wrong caption is a text that is not made before it is needed.
            wrong = [] if negative is None else [[f"no {text}" for text in own]]
            return Needs([pairs, choices.images], [own, *wrong, choices.captions])

        return Opened(evaluate, needs)

    def _learned(
        self, encoders: Encoders, pairs: ImageSet, negative: SecondCaption | None
    ) -> tuple[Float[np.ndarray, "d d"], int]:
        """(the matrix, how many pairs it was learned on)."""
        embeds = encoders.pair_embeds(pairs)
        wrong, has_wrong = None, None
        if negative is not None:
            texts = []
            for caption, index in zip(embeds.captions, embeds.index.tolist(), strict=True):
                record = Record(b"", [caption], [1.0])
                if self.negatives == "given":
                    record = pairs.source.read(index)
                texts.append(negative(record, caption, self.seed, 0, index))
            has_wrong = np.array([text != "" for text in texts])
            # In place of a missing one, which nothing chooses, any text will do.
            filled = [text or own for text, own in zip(texts, embeds.captions, strict=True)]
            wrong = encoders.text_embeds(filled)
        text_map = train_text_map(
            embeds.images,
            embeds.texts,
            wrong,
            has_wrong,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )
        return text_map, len(embeds.captions)


def train_text_map(
    images: Rows,
    texts: Rows,
    wrong: Rows | None = None,
    has_wrong: Bool[np.ndarray, "n"] | None = None,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Float[np.ndarray, "d d"]:
    """Learns W for text embeddings t, which become t·W with unit norm (Koishigarina et al. 2025).

    It begins as the identity, and minimises NegCLIP's loss, or CLIP's without wrong texts, by Adam.
    The scale of the similarities is e^t with a t that begins at 0 and learns too.

    Args:
      images, texts: unit-norm embeddings of N pairs, [N, D].
      wrong: those of a wrong text of each, [N, D]; None is none.
      has_wrong: whether each has one, bool [N].
      epochs: passes over the pairs, each in an order of its own.
      batch_size: pairs of a step; all, where there are fewer. Those that fill no batch are left out
        of a pass.
      learning_rate: of Adam.
      seed: of the order.

    Returns:
      W, float32 [D, D].
    """
    n, width = images.shape
    rows = min(batch_size, n)
    optimizer = optax.adam(learning_rate)
    params = {"text_map": jnp.eye(width), "log_scale": jnp.zeros(())}

    def loss_of(params, images, texts, wrong, has_wrong):
        def mapped(embeds):
            embeds = embeds @ params["text_map"]
            return embeds / jnp.linalg.norm(embeds, axis=1, keepdims=True)

        further = () if wrong is None else (mapped(wrong), has_wrong)
        return info_nce(images, mapped(texts), jnp.exp(params["log_scale"]), *further)[0]

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(loss_of)(params, *batch)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for epoch in range(epochs):
        chosen = order(seed, epoch, n)[: n // rows * rows].reshape(-1, rows)
        for index in chosen:
            batch = [
                None if part is None else part[index] for part in (images, texts, wrong, has_wrong)
            ]
            params, state = step(params, state, batch)
    return np.asarray(params["text_map"], np.float32)
