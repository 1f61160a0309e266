"""The configured model on a mesh: created, restored, and as the encoders that evaluators see."""

import jax
import jax.numpy as jnp
from flax import nnx

from cyclip_jax import parallel
from cyclip_jax.evals import Encoders
from cyclip_jax.models import create_model
from cyclip_jax.models.clip import unit_norm
from cyclip_jax.models.presets import abstract_model, normaliser, sizes_in
from cyclip_jax.training.objective import configured_objective


class Model:
    """The model of a config on a mesh.

    Attributes:
      sizes: of the config's model, overrides applied (see `resolve_sizes`).
      normalise: function from uint8 images to what the image tower takes.
      train_graphdef: with params and batch_stats it makes the module in training mode.
      abstract: shapes and shardings of {"params", "batch_stats"}, to restore weights into.
    """

    def __init__(self, config, mesh):
        self._config, self._mesh = config, mesh
        whole = parallel.replicated(mesh)
        self.sizes = sizes_in(config.model)
        self.train_graphdef, graphdef, self.abstract = abstract_model(config.model, sharding=whole)
        self.normalise = normaliser(config)

        def encode_features(params, batch_stats, images):
            model = nnx.merge(graphdef, params, batch_stats)
            features = model.encode_image(self.normalise(images))
            return features.astype(jnp.promote_types(features.dtype, jnp.float32))

        def encode_text(params, batch_stats, tokens):
            return unit_norm(nnx.merge(graphdef, params, batch_stats).encode_text(tokens))

        self._encode_features = jax.jit(encode_features, out_shardings=whole)
        self._encode_text = jax.jit(encode_text, out_shardings=whole)
        self._gather = jax.jit(lambda rows: rows, out_shardings=whole)
        # Evaluators have pairs, and nothing of what other terms ask of a batch.
        objective = configured_objective(config).only("contrastive", "cyclic")

        def loss(images, texts, scale):
            return objective({"images": images, "texts": texts}, {}, {"logit_scale": scale})[1]

        self._loss = jax.jit(loss)

    def create(self):
        """A new module with the seed's initial parameters."""
        return create_model(**self._config.model, rngs=nnx.Rngs(self._config.seed))

    def encoders(self, params, batch_stats, tokenize, check_stop=lambda: None):
        """The model with these parameters as an evaluator sees it."""

        def of_rows(function, *leading):
            def encode(rows):
                return jax.device_get(function(*leading, parallel.to_global(rows, self._mesh)))

            return encode

        scale = jnp.exp(params["logit_scale"])
        return Encoders(
            encode_features=of_rows(self._encode_features, params, batch_stats),
            encode_text=of_rows(self._encode_text, params, batch_stats),
            gather=of_rows(self._gather),
            loss=lambda images, texts: jax.device_get(self._loss(images, texts, scale)),
            tokenize=tokenize,
            check_stop=check_stop,
            image_size=self.sizes["image_size"],
            batch_size=self._config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
