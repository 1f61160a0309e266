"""What an evaluator sees of a model, and how it embeds a data set with it."""

import dataclasses
from collections.abc import Callable

import numpy as np

from cyclip_jax.data.pipeline import eval_batches


@dataclasses.dataclass(frozen=True)
class Encoders:
    """A model as two functions and the little that an evaluator needs besides.

    Attributes:
      encode_image: this process's rows, uint8 [b, H, W, 3] -> unit-norm float32 [B, D] of all
        processes' rows, in NumPy.
      encode_features: the same without the unit norm: what a linear probe is trained on.
      encode_text: the same for token ids int32 [b, L].
      gather: any array with this process's rows -> all processes' rows, in NumPy.
      loss: (image_embeds [n, D], text_embeds [n, D]) -> the training loss's metrics, a dict.
      tokenize: texts -> int32 [n, L].
      image_size: pixels per side.
      batch_size: rows B over all processes; also the size of the groups that losses are taken in.
      process_index, process_count: whose rows are this process's.
    """

    encode_image: Callable
    encode_features: Callable
    encode_text: Callable
    gather: Callable
    loss: Callable
    tokenize: Callable
    image_size: int
    batch_size: int
    process_index: int = 0
    process_count: int = 1

    def embed_pairs(self, source, *, with_text=True):
        """Embeds a whole source in file order.

        Returns:
          (image_embeds [M, D], text_embeds [M, D] or None, indices [M]) of the M examples that
          could be read; `indices` are their places in the source.
        """
        encoders = {"images": self.encode_image}
        if with_text:
            encoders["tokens"] = self.encode_text
        embeds, indices = self._embed(source, encoders)
        return embeds["images"], embeds.get("tokens"), indices

    def embed_features(self, source):
        """Embeds a whole source's images in file order, without the unit norm.

        Returns:
          (features [M, D], indices [M]) of the M examples that could be read, as `embed_pairs`.
        """
        features, indices = self._embed(source, {"images": self.encode_features})
        return features["images"], indices

    def _embed(self, source, encoders):
        """({key of a batch: what its encoder makes of it, [M, D]}, indices [M])."""
        embeds, masks = {key: [] for key in encoders}, []
        for batch in eval_batches(
            source,
            self.tokenize,
            batch_size=self.batch_size,
            image_size=self.image_size,
            process_index=self.process_index,
            process_count=self.process_count,
        ):
            masks.append(self.gather(batch["mask"]))
            for key, encode in encoders.items():
                embeds[key].append(encode(batch[key]))
        mask = np.concatenate(masks)
        whole = {key: np.concatenate(parts)[mask] for key, parts in embeds.items()}
        return whole, np.flatnonzero(mask)

    def embed_texts(self, texts):
        """Unit-norm embeddings [n, D] of any number of texts."""
        rows = self.batch_size // self.process_count
        start = self.process_index * rows
        embeds = []
        for first in range(0, len(texts), self.batch_size):
            tokens = self.tokenize(texts[first : first + self.batch_size])
            padding = self.batch_size - len(tokens)
            # The last text again, not zeros: a row needs an end-of-text token.
            tokens = np.pad(tokens, ((0, padding), (0, 0)), mode="edge")
            embeds.append(self.encode_text(tokens[start : start + rows]))
        return np.concatenate(embeds)[: len(texts)]
