"""Where a run starts: from its newest checkpoint, from another model, or from scratch."""

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from cyclip_jax import parallel
from cyclip_jax.data.order import Position
from cyclip_jax.data.sentences import SentenceSet
from cyclip_jax.data.settings import check_continued
from cyclip_jax.data.sources import Mixture, Source
from cyclip_jax.data.tokenizers import Tokenizer, vocabulary_of
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.labelled import LabelledImages
from cyclip_jax.files import is_on_hub, write_atomically
from cyclip_jax.interop.checkpoint import (
    IMAGE_SETTINGS,
    OUR_PREPROCESS,
    RARELY_OTHER,
    UNSEEN,
    Checkpoint,
    check_settings,
    check_vocabulary,
)
from cyclip_jax.interop.folders import settings_of
from cyclip_jax.interop.hub import as_recorded
from cyclip_jax.interop.long_texts import with_stretched_positions
from cyclip_jax.interop.pretrained import (
    open_checkpoint,
    tokenizer_settings,
    workdir_and_step,
)
from cyclip_jax.interop.weights import fit, only_parts, takes
from cyclip_jax.losses.classes import HEAD
from cyclip_jax.models.presets import sizes_in
from cyclip_jax.runtime.agreement import of_process_zero, process_zero_first
from cyclip_jax.runtime.sections import resolve_paths
from cyclip_jax.training.averaging import OF_TRAINING, Average, completed, like, with_average
from cyclip_jax.training.classes import first_head
from cyclip_jax.training.configured_model import Model
from cyclip_jax.training.freezing import trainable_by
from cyclip_jax.training.step import (
    Params,
    TrainState,
    abstract_state,
    create_state,
)
from cyclip_jax.workdir.config_json import is_workdir, read_config
from cyclip_jax.workdir.console import Console
from cyclip_jax.workdir.layout import CONFIG, LOG
from cyclip_jax.workdir.saved import saved_steps

if TYPE_CHECKING:
    from cyclip_jax.workdir.checkpoints import Checkpointer


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """What a run begins or continues with.

    Attributes:
      state: the TrainState, which lies on the mesh.
      position: the place in the data at which the next batch begins.
      owes_evaluation: whether the run was stopped during the evaluation of the step it begins at.
      meta: what the checkpoint that the run continues says of itself; None of a new run.
    """

    state: TrainState
    position: Position
    owes_evaluation: bool = False
    meta: Mapping[str, Any] | None = None


def starting_point(
    config: Any,
    model: Model,
    optimizer: optax.GradientTransformation,
    checkpointer: "Checkpointer",
    mesh: Mesh,
    source: Source | Mixture,
    sentences: SentenceSet | None,
    classes: LabelledImages | None,
    tokenizer: Tokenizer,
    console: Console,
) -> StartingPoint:
    """Starts from the newest good checkpoint, else from config.init_from, else from scratch.

    Args:
      config: the run's ConfigDict, with its paths resolved.
      model: the config's model on the mesh.
      optimizer: the transformation whose state a checkpoint holds.
      checkpointer: the workdir's.
      mesh: the mesh that the state is to lie on.
      source: the training data, which a checkpoint must have been trained on.
      sentences: what the text tower is trained on besides, or None.
      classes: whose texts a head begins with, or None.
      tokenizer: the run's, whose vocabulary has to be that of the weights.
      console: is told where the run starts.

    Returns:
      A StartingPoint.

    Raises:
      UserError: a checkpoint, or the model that the run is to start from, does not fit.
    """
    seed = config.seed
    abstract = abstract_state(
        model.create, optimizer, mesh, seed=seed, min_size=config.mesh.fsdp_min_size
    )
    trainable = trainable_by(config.optimizer.freeze)
    has_average = Average(**config.average).is_on
    if has_average:
        abstract = with_average(abstract, trainable)
    abstract_model, abstract_training = checkpoint_items(abstract)
    restored = checkpointer.restore_newest(model=abstract_model, training=abstract_training)
    if restored is not None:
        step, trained, training, meta = restored
        check_continued(config, source, meta, sentences)
        check_continued_vocabulary(meta, tokenizer, checkpointer.workdir)
        console.say(f"continuing from step {step}")
        # What ended the run before is mended, or the next steps will show that it is not.
        training["most_skipped_in_a_row"] = jnp.zeros_like(training["most_skipped_in_a_row"])
        owes_evaluation = not meta.get("is_evaluated", True)  # older checkpoints do not say
        state = state_of_items(trained, training)
        if has_average:
            state = dataclasses.replace(state, average=like(abstract.average, state.average))
        return StartingPoint(state, Position(**meta["position"]), owes_evaluation, meta)
    # Before anything is computed: what does not fit is said at once.
    given = {}
    if config.init_from is not None:
        given = _given_model(config, abstract_model, tokenizer, console)
    sharding = dataclasses.replace(abstract, average=None)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, sharding)
    state = create_state(model.create, optimizer, seed=seed, sharding=sharding)
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    console.log(overview)
    console.say(_parameter_summary(state.params))
    own, training = checkpoint_items(state)
    own = {kind: parts | given.get(kind, {}) for kind, parts in own.items()}
    if classes is not None and HEAD in own["params"]:
        own["params"][HEAD] = _first_head(
            model.encoders(**own, tokenize=tokenizer), classes, abstract.params[HEAD], console
        )
    state = state_of_items(own, training)
    state = with_average(state, trainable) if has_average else state
    return StartingPoint(state, Position(epoch=0, examples=0, seed=seed))


def _first_head(encoders, classes, abstract, console):
    """The `first_head` on the mesh."""
    if not classes.is_named:
        console.say("the classes have numbers for names, so that their head begins with zeros")
    width, _ = abstract["kernel"].shape
    return parallel.place(first_head(classes, encoders, width), abstract)


def _parameter_summary(params):
    count = parameter_overview.count_parameters
    towers = ", ".join(f"{count(params[tower]):,.0f} in {tower}" for tower in ("visual", "text"))
    return f"{count(params):,.0f} parameters, {towers} (each in {LOG})"


def checkpoint_items(state: TrainState) -> tuple[Params, Params]:
    """A TrainState as the two trees of a checkpoint: the model, and what else training needs.

    An average is among the latter, as a tree like the model.
    """
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    model = {name: fields.pop(name) for name in ("params", "batch_stats")}
    of_training = {n: part for n, part in model["params"].items() if n in OF_TRAINING}
    model["params"] = {n: part for n, part in model["params"].items() if n not in OF_TRAINING}
    average = fields.pop("average")
    if average is not None:
        fields["average"] = completed(average, model)
    return model, fields | of_training


def state_of_items(model: Params, training: Params) -> TrainState:
    """The TrainState whose `checkpoint_items` these are; its average has all that the model has."""
    of_training = {name: part for name, part in training.items() if name in OF_TRAINING}
    params = model["params"] | of_training
    others = {name: part for name, part in training.items() if name not in of_training}
    return TrainState(**model | {"params": params}, **others)


def _given_model(config, abstract, tokenizer, console):
    """The model that config.init_from names.

    Args:
      config: the run's; its model is the one to be filled.
      abstract: {"params": …, "batch_stats": …}, trees of jax.ShapeDtypeStruct with shardings.
      tokenizer: the run's.
      console: is told where the parameters come from.

    Returns:
      The same trees with global arrays, of the parts that config.init_parts names.

    Raises:
      UserError: it is another model or tokenizer; the message lists everything that does not fit.
    """
    checkpoint, parts = open_checkpoint(config.init_from), config.init_parts
    # A head begins with what the classes' texts say.
    abstract = {
        kind: {n: p for n, p in tree.items() if n != HEAD} for kind, tree in abstract.items()
    }
    weights, keep = checkpoint.weights, config.init_keep_positions
    if keep is not None:
        length = sizes_in(config.model)["context_length"]
        weights = with_stretched_positions(weights, length, keep, source=checkpoint.source)
    tree = fit(weights, abstract, source=checkpoint.source, parts=parts)
    has_images, has_texts = takes("visual", parts), takes("text", parts)
    _warn_of_other_data(
        checkpoint.preprocess if has_images else {},
        (checkpoint.tokenizer or {}) if has_texts else {},
        *(checkpoint.source, config.data),
    )
    settings = {"quick_gelu": config.model.quick_gelu, **sizes_in(config.model)}
    left_out = set() if has_images else {"vision_heads", "pool"}
    left_out |= set() if has_texts else {name for name in settings if name.startswith("text_")}
    left_out |= set() if has_images or has_texts else {"quick_gelu"}
    left_out |= set() if settings["text_pool"] == "eos" else {"text_eos_id"}
    compared = [name for name in (*UNSEEN, *RARELY_OTHER) if name not in left_out]
    check_settings(checkpoint, {name: settings[name] for name in compared})
    if has_texts:
        check_given_vocabulary(config, checkpoint, tokenizer)
    of_step = "" if checkpoint.step is None else f" of step {checkpoint.step}"
    alone = f" ({', '.join(parts)} alone)" if parts else ""
    console.say(f"starting from the parameters{of_step} of {config.init_from}{alone}")
    return parallel.place(tree, only_parts(abstract, parts))


def check_given_vocabulary(config: Any, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises UserError where config.init_from's weights were trained with another vocabulary."""
    own = checkpoint.tokenizer
    is_named = config.data.vocabulary is not None
    if own is None and not is_named and config.data.tokenizer == "sentencepiece":
        # An earlier attempt in this workdir has left one, which nothing joins to these weights.
        raise _no_vocabulary(config)
    if own is not None and own["tokenizer"] != config.data.tokenizer:
        raise UserError(
            f"{checkpoint.source} has the tokenizer {own['tokenizer']!r}; "
            "set config.data.tokenizer to that"
        )
    remedy = (
        "leave out config.data.vocabulary, and a new run takes theirs"
        if is_named
        else f"no checkpoint here needs the former: remove {tokenizer.vocabulary}, and the run "
        "takes theirs"
    )
    check_vocabulary(checkpoint, tokenizer, remedy=remedy)


def check_continued_vocabulary(
    meta: Mapping[str, Any], tokenizer: Tokenizer, workdir: str | os.PathLike[str]
) -> None:
    """Raises UserError where the vocabulary is not that of a checkpoint, which says `meta`."""
    data = resolve_paths(ml_collections.ConfigDict(meta["config"]), workdir).data
    before = Checkpoint(
        source=str(workdir),
        weights={},
        model={},
        tokenizer={"tokenizer": data.tokenizer, "vocabulary": vocabulary_of(data, workdir)},
        preprocess={},
        vocabulary_sum=meta.get("vocabulary_sum"),  # older checkpoints lack it
    )
    remedy = "set config.data.vocabulary as it was, and bring back its file"
    check_vocabulary(before, tokenizer, remedy=remedy)


def _no_vocabulary(config):
    return UserError(
        f"{config.init_from} has no vocabulary of the tokenizer {config.data.tokenizer!r}; set "
        "config.data.tokenizer to its own, or config.data.vocabulary to its file"
    )


def _warn_of_other_data(preprocess, tokenizer, source, data):
    ours = OUR_PREPROCESS | {name: data[name] for name in (*IMAGE_SETTINGS, "keep_end_of_text")}
    told = preprocess | tokenizer
    for name in [name for name in told if name in ours]:
        value, here = told[name], ours[name]
        if np.any(np.asarray(value) != np.asarray(here)):
            logging.warning(
                "%s was trained with %s %s; this run has %s.", source, name, value, here
            )


def begun_from(path: str, workdir: str | os.PathLike[str]) -> str:
    """The path of a model that a run begins from, with the commit of one on the Hugging Face Hub.

    A branch may move. What a run records is therefore the commit, and that of its first start stays
    when it is started again.

    Raises:
      UserError: the Hub has no such model, or cannot be asked.
    """
    if not is_on_hub(path):
        return path
    recorded: Any = read_config(workdir) if (epath.Path(workdir) / CONFIG).exists() else None
    return as_recorded(
        path,
        None if recorded is None else recorded.init_from,
        goes_on=bool(saved_steps(workdir)),
    )


def with_commit(config: Any, workdir: str | os.PathLike[str]) -> Any:
    """A locked copy of a config whose init_from is as `begun_from` has it, on all processes."""
    if config.init_from is None or not is_on_hub(config.init_from):
        return config
    path = process_zero_first(lambda: begun_from(config.init_from, workdir))
    config = config.copy_and_resolve_references().unlock()
    config.init_from = of_process_zero(path)
    return config.lock()


def takes_texts(config: Any) -> bool:
    """Whether a run's text tower comes from config.init_from, and with it the vocabulary."""
    return config.init_from is not None and takes("text", config.init_parts)


def inherit_vocabulary(config: Any, workdir: str | os.PathLike[str]) -> None:
    """Copies the vocabulary of config.init_from into the workdir of a run that names none.

    The embedding of a token is useful only where the token keeps its number.

    Raises:
      UserError: the model that the run starts from has no such vocabulary.
    """
    own = vocabulary_of(config.data, workdir)
    if not takes_texts(config) or config.data.vocabulary is not None or own is None:
        return
    if epath.Path(own).exists():
        return
    origin, _ = workdir_and_step(config.init_from, None)
    if is_workdir(origin):
        tokenizer = tokenizer_settings(resolve_paths(read_config(origin), origin), origin)
    else:
        tokenizer = settings_of(origin).get("tokenizer")  # not its weights: they are read later
    if not tokenizer or tokenizer["tokenizer"] != config.data.tokenizer:
        raise _no_vocabulary(config)
    try:
        write_atomically(own, epath.Path(tokenizer["vocabulary"]).read_bytes())
    except OSError as error:
        raise UserError(f"the vocabulary of {config.init_from} cannot be read: {error}") from error
