"""The configured model on a mesh: created, restored, and as the encoders that evaluators see."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cyclip_jax import parallel
from cyclip_jax.evals import Encoders
from cyclip_jax.evals.encoders import ClassRows
from cyclip_jax.losses.classes import HEAD
from cyclip_jax.models import create_model
from cyclip_jax.models.batch_norm import BatchNorm
from cyclip_jax.models.clip import CLIP, over_windows, split_model, unit_norm
from cyclip_jax.models.initializers import undrawn
from cyclip_jax.models.presets import abstract_model, normaliser, sizes_in
from cyclip_jax.models.sentence_head import SentenceHead
from cyclip_jax.training.freezing import of_statistics, trainable_by
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.sentences import Sentences
from cyclip_jax.training.step import Params

_HEAD = 1 << 20  # of the seed's key


def create_trained(config: Any) -> CLIP:
    """The model of a config as it is trained, with the seed's initial parameters.

    It may have a sentence head, which is left out of checkpoints' models and of exports.

    Args:
      config: as defaults.py makes it.
    """
    model = create_model(**config.model, rngs=nnx.Rngs(config.seed))
    for name, value in Objective(**config.loss).initial_scalars.items():
        scalar = getattr(model, name)
        if scalar is not None:
            scalar[...] = jnp.asarray(value, scalar[...].dtype)
    if Sentences(**config.sentences).has_head:
        # A stream of its own: the rest is the same without a head.
        rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(config.seed), _HEAD))
        width = sizes_in(config.model)["text_width"]
        model.sentence_head = SentenceHead(width, dtype=jnp.dtype(config.model.dtype), rngs=rngs)
    return model


def abstract_trained(config: Any) -> tuple[nnx.GraphDef[Any], Params]:
    """The module that is trained: what makes it, together with its numbers, and their shapes.

    It is in training mode, but for each BatchNorm whose parameters are all frozen.

    Args:
      config: as defaults.py makes it.

    Returns:
      (graphdef, params), the latter a nested dict of jax.ShapeDtypeStruct.
    """
    with undrawn():
        model = nnx.eval_shape(lambda: create_trained(config))
    model.train()
    trainable = trainable_by(config.optimizer.freeze)
    if trainable is not None:
        moves = of_statistics(trainable)
        for path, module in nnx.iter_modules(model):
            if isinstance(module, BatchNorm) and not moves((*path, "mean")):
                module.eval()
    graphdef, params, _ = split_model(model)
    return graphdef, params


class Model:
    """The model of a config on a mesh.

    Args:
      config: as defaults.py makes it.
      mesh: the mesh that its parameters and the batches lie on.

    Attributes:
      sizes: the sizes of the config's model, overrides applied (see `resolve_sizes`).
      num_classes: of its head; None where it has none.
      normalise: function from uint8 images to what the image tower takes.
      train_graphdef: makes the module in training mode, together with params and batch_stats.
      trained: the shapes of that module's params, a sentence head's among them.
      abstract: shapes and shardings of {"params", "batch_stats"}, into which weights are restored.
    """

    def __init__(self, config: Any, mesh: Mesh) -> None:
        self._config, self._mesh = config, mesh
        whole = parallel.replicated(mesh)
        self.sizes: dict[str, Any] = sizes_in(config.model)
        self.num_classes: int | None = config.model.num_classes
        _, graphdef, abstract = abstract_model(config.model, sharding=whole)
        self.train_graphdef, self.trained = abstract_trained(config)
        self.abstract: dict[str, Params] = abstract
        self.normalise: Callable[..., jax.Array] = normaliser(config)

        def encode_features(params, batch_stats, images):
            model = nnx.merge(graphdef, params, batch_stats)
            with parallel.rows_over(mesh):
                features = model.encode_image(self.normalise(images))
            return features.astype(jnp.promote_types(features.dtype, jnp.float32))

        def encode_text(params, batch_stats, tokens):
            model = nnx.merge(graphdef, params, batch_stats)
            with parallel.rows_over(mesh):
                return unit_norm(over_windows(model.encode_text, tokens, each=jax.lax.map))

        self._encode_features = jax.jit(encode_features, out_shardings=whole)
        self._encode_text = jax.jit(encode_text, out_shardings=whole)
        self._gather = jax.jit(lambda rows: rows, out_shardings=whole)
        # Evaluators have pairs, and nothing of what other terms ask of a batch.
        objective = Objective(**config.loss)

        def loss(images, texts, scalars):
            return objective({"images": images, "texts": texts}, {}, scalars)[1]

        self._loss = jax.jit(loss)

    def create(self) -> CLIP:
        """Makes a new module in training with the seed's initial parameters."""
        return create_trained(self._config)

    def encoders(
        self,
        params: Params,
        batch_stats: Params,
        tokenize: Callable[[Sequence[str]], np.ndarray],
        check_stop: Callable[[], None] = lambda: None,
        classes: Sequence[str] | None = None,
    ) -> Encoders:
        """The model as an evaluator sees it.

        Args:
          params: the model's parameters, a nested dict of arrays.
          batch_stats: BatchNorm's running statistics, a nested dict of arrays.
          tokenize: function from texts to token ids, int32 [n, L].
          check_stop: function that is called between batches and raises where the run is to stop.
          classes: names of the classes of the model's head, if it has one.

        Returns:
          The Encoders.
        """

        def of_rows(function, *leading):
            def encode(rows):
                return jax.device_get(function(*leading, parallel.to_global(rows, self._mesh)))

            return encode

        scalars = {"logit_scale": jnp.exp(params["logit_scale"])}
        head = None
        if classes is not None and HEAD in params:
            kernel, bias = (jax.device_get(params[HEAD][name]) for name in ("kernel", "bias"))
            head = ClassRows(classes, kernel.T, bias / float(scalars["logit_scale"]))
        if "logit_bias" in params:
            scalars["logit_bias"] = params["logit_bias"]
        return Encoders(
            encode_features=of_rows(self._encode_features, params, batch_stats),
            encode_text=of_rows(self._encode_text, params, batch_stats),
            gather=of_rows(self._gather),
            loss=lambda images, texts: jax.device_get(self._loss(images, texts, scalars)),
            tokenize=tokenize,
            check_stop=check_stop,
            image_size=self.sizes["image_size"],
            resize_mode=self._config.data.resize_mode,
            head=head,
            batch_size=self._config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
