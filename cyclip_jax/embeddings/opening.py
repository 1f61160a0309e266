"""Opens a collection: its embeddings, the model that made them, and the data, as far as they are
there."""

import dataclasses
import functools
import os

from absl import logging

from cyclip_jax.data.listing import Input
from cyclip_jax.data.record import Source
from cyclip_jax.embeddings.collection import Collection
from cyclip_jax.embeddings.layout import MANIFEST, Embeddings
from cyclip_jax.embeddings.nearest import by_faiss, exact
from cyclip_jax.embeddings.write import open_data
from cyclip_jax.errors import UserError
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.interop.pretrained import workdir_and_step
from cyclip_jax.models.presets import sizes_in
from cyclip_jax.training.opened_model import open_model
from cyclip_jax.workdir.config_json import is_workdir

_READING = {field.name for field in dataclasses.fields(Input)} - {"input"}


def open_collection(
    folder: str | os.PathLike[str],
    *,
    checkpoint: str | None = None,
    data: str | None = None,
    faiss: str | None = None,
) -> Collection:
    """Opens embeddings to look through them.

    Args:
      folder: as `python -m cyclip_jax.embed` wrote it, or clip-retrieval.
      checkpoint: the model that made them; None is where the folder says that it lies.
      data: where the data lie now; None is where they lay.
      faiss: an index for `by_faiss`; None compares a query with every row.

    Returns:
      The collection. Without a model or without the data, where the folder names none or they are
      not there any more, which is logged, less can be done with it.

    Raises:
      UserError: there are no embeddings, or the model or the data are others.
    """
    embeddings = Embeddings(os.fspath(folder))
    index = exact if faiss is None else functools.partial(by_faiss, factory=faiss)
    encoders = _model(embeddings, checkpoint)
    return Collection(embeddings, index, encoders, _data(embeddings, data))


def _model(embeddings: Embeddings, checkpoint: str | None) -> Encoders | None:
    about = embeddings.about
    named = about.get("checkpoint") if checkpoint is None else checkpoint
    if named is None:
        logging.warning("%s names no model; sentences need --checkpoint.", embeddings.folder)
        return None
    try:
        # Of a run one checkpoint among several is meant. An export is one, and tells its step too.
        own = {"step": about.get("step"), "weights": about.get("weights", "raw")}
        opened = open_model(named, batch_size=1, **own if _is_run(named) else {})
    except UserError as error:
        if checkpoint is not None:
            raise
        logging.warning("sentences cannot be embedded: %s; name the model by --checkpoint.", error)
        return None
    wanted = about.get("weights_sum")
    if wanted is not None and opened.checkpoint.weights_sum() != wanted:
        raise UserError(
            f"{named} is not the model that made {embeddings.folder}: its weights are others; "
            "name that model by --checkpoint, or embed the data again"
        )
    dim = sizes_in(opened.config.model)["embed_dim"]
    if embeddings.dim != dim:
        raise UserError(
            f"the embeddings in {embeddings.folder} have {embeddings.dim} numbers, and those of "
            f"{named} have {dim}; name the model that made them by --checkpoint"
        )
    return opened.encoders


def _is_run(checkpoint):
    return is_workdir(workdir_and_step(checkpoint, None)[0])


def _data(embeddings: Embeddings, data: str | None) -> Source | None:
    about = embeddings.about
    named = about.get("data") if data is None else data
    if named is None or not about:
        logging.warning("%s has no %s; its pictures cannot be shown.", embeddings.folder, MANIFEST)
        return None
    try:
        reading = {name: about[name] for name in _READING}
        return open_data(Input(input=named, **reading))[0]
    except UserError as error:
        if data is not None:
            raise
        logging.warning("the pictures cannot be shown: %s; name the data by --data.", error)
        return None
