"""What reads the fuzzer's inputs: the package's own ways from a file to what is used of it.

Whatever a reader raises but UserError is a fault, and so is a Fault, which says what did not hold.
"""

import itertools
import logging
import pathlib
from collections.abc import Callable

import numpy as np
from absl import flags

from benchmarks.fuzz.damage import TEXTS, Case
from benchmarks.fuzz.data import EXAMPLES, SIDE, caption, mark, number_in, number_seen
from benchmarks.fuzz.models import CLIP_IDS

IMAGE_SIZE = SIDE // 2
_BATCH = 4


class Fault(Exception):
    """Something that has to hold and does not; `kind` is a word for it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Ledger(logging.Handler):
    """Keeps which examples were read, and what was said of the others.

    Attributes:
      seen: the numbers of the examples that were read whole.
      told: how many others were named, or read with a damaged mark.
      has_warned: whether anything was said of more than one example.
    """

    def __init__(self, case: Case) -> None:
        super().__init__(logging.WARNING)
        self.seen: set[int] = set()
        self.told, self.has_warned, self._case = 0, False, case

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a warning of the package."""
        self.has_warned = True

    def pair(self, image: int, text: int, where: str) -> None:
        """Takes the numbers that a picture and its text tell."""
        if self._case.is_paired and min(image, text) >= 0 and image != text:
            raise Fault("glued", f"{where}: the picture of {image} has the text of {text}")
        self.told += text < 0
        self.seen |= {text} - {-1}

    def close_books(self) -> None:
        """Raises Fault where examples of the file were neither read nor named."""
        files = self._case.files.items()
        content = b"".join(data for name, data in files if not name.startswith(mark(0)[:2]))
        lost = {n for n in range(EXAMPLES) if mark(n).encode() in content} - self.seen
        # One damaged row may be what is left of several.
        if self._case.is_paired and len(lost) > 3 * self.told and not self.has_warned:
            raise Fault("lost", f"{sorted(lost)} were neither read nor named")


def _numbers(texts):
    """A tokenizer whose only id is the number that a text tells. int32 [n, 1]."""
    return np.array([[number_in(text)] for text in texts], np.int32)


def _source(folder, ledger, path, way, caption_key=None):
    """Reads data as training and evaluations do; `way` says by which part of the package."""
    from cyclip_jax.data.bad_examples import BadExamples
    from cyclip_jax.data.sources import create_source

    place = {"config_key": "config.data.train", "caption_key": caption_key}
    source = create_source("auto", str(folder / path), **place)
    ledger.has_warned |= bool(source.faults)
    keys, captions = source.keys(range(len(source))), source.captions()
    if not len(keys) == len(captions) == len(source):
        raise Fault("lost", f"{len(source)} examples, {len(keys)} keys, {len(captions)} captions")
    bad = BadExamples(folder / "bad.jsonl", 1.0, len(source))
    for index, image, text in _WAYS[way](source, bad):
        if image is not None:
            ledger.pair(number_seen(image), text, f"{way}, example {index}")
            if way != "train":
                told = number_in(captions[index])
                ledger.pair(number_seen(image), told, f"captions, {keys[index]}")
        elif (keys[index], index) not in bad:
            raise Fault("lost", f"{keys[index]} was neither read nor named")
    ledger.told += bad.count
    if way == "train":
        ledger.has_warned = True  # an epoch leaves out what fills no batch
    if way == "prepare":
        _prepare(folder, ledger, path, caption_key)


def _one_by_one(source, bad):
    """Yields (index, image or None, number of its text) by the pipeline's own parts."""
    import tensorflow as tf

    from cyclip_jax.data import loading, pipeline
    from cyclip_jax.data.record import Unreadable
    from cyclip_jax.data.transform import Transform

    loader = loading.eval_loader(source, IMAGE_SIZE)
    cropped = Transform(augmentation="random_resized_crop", crop_scale=(0.2, 1), decoder="fast")
    load_cropped = loading.train_loader(source, IMAGE_SIZE, 0, cropped).pictures
    for index, key in enumerate(source.keys(range(len(source)))):
        image, tokens = None, np.array([[-1]])
        try:
            encoded, captions = loader.read(0, index)
            row = tf.constant([0, index], tf.int64)
            load_cropped(tf.constant(encoded), row)
            image = loader.pictures(tf.constant(encoded), row)["images"].numpy()
            tokens, _ = pipeline._tokenise(_numbers, [captions["tokens"]])
        except Unreadable as error:
            bad.add(key, index, error.reason)
        except tf.errors.OpError as error:
            bad.add(key, index, pipeline.unreadable(error).reason)
        yield index, image, int(tokens[0, 0])


def _evaluated(source, bad):
    from cyclip_jax.data import pipeline

    common = {"image_size": IMAGE_SIZE, "batch_size": _BATCH, "bad_examples": bad}
    for number, batch in enumerate(pipeline.eval_batches(source, _numbers, **common)):
        for row, is_read in enumerate(batch["mask"]):
            index = number * _BATCH + row
            if index < len(source):
                image = batch["images"][row] if is_read else None
                yield index, image, int(batch["tokens"][row, 0])


def _trained(source, bad):
    from cyclip_jax.data import pipeline

    common = {"image_size": IMAGE_SIZE, "batch_size": _BATCH, "bad_examples": bad}
    batches = pipeline.train_batches(source, _numbers, seed=1, position=None, **common)
    try:
        for batch, _ in itertools.islice(batches, len(source) // _BATCH):
            for image, text in zip(batch["images"], batch["tokens"][:, 0], strict=True):
                yield -1, image, int(text)
    finally:
        batches.close()


_WAYS = {"read": _one_by_one, "evaluate": _evaluated, "train": _trained, "prepare": _one_by_one}


def _prepare(folder, ledger, path, caption_key):
    from cyclip_jax.data.prepare import Preparation, prepare
    from cyclip_jax.data.record import read_told
    from cyclip_jax.data.sources import create_source

    keys = (caption_key,) if isinstance(caption_key, str) else caption_key or ()
    manifest = prepare(Preparation((str(folder / path),), caption_key=keys), folder / "prepared")
    dropped = sum(manifest["dropped"].values())
    if manifest["examples"] + dropped != manifest["input_examples"]:
        raise Fault("lost", f"prepare wrote {manifest['examples']} and dropped {dropped}")
    source = create_source("auto", str(folder / "prepared" / "*.tfrecord"), config_key="input")
    for index in range(len(source)):
        record = read_told(source.read, index)
        ledger.pair(_seen(record.image), number_in(record.captions[0]), "prepare")


def _seen(encoded):
    from cyclip_jax.data.decoding import pixels_of

    return number_seen(pixels_of(encoded))


def _each(source, numbered_texts, ledger, where):
    """Takes the pairs (index in the source, text)."""
    from cyclip_jax.data.record import Unreadable, read_told

    for index, text in numbered_texts:
        try:
            ledger.pair(_seen(read_told(source.read, int(index)).image), number_in(text), where)
        except Unreadable:
            ledger.told += 1


def _labels(folder, ledger, path, classes=None):
    from cyclip_jax.evals.data.labelled import open_labelled

    classes = None if classes is None else str(folder / classes)
    opened = open_labelled(str(folder / path), config_key="config.evals.x.test", classes=classes)
    texts = [opened.classes[label] for label in opened.labels]
    if len(texts) != len(opened.source):
        raise Fault("lost", f"{len(opened.source)} pictures have {len(texts)} labels")
    _each(opened.source, enumerate(texts), ledger, "labels")


def _pairs(folder, ledger, path):
    from cyclip_jax.evals.data.pairs import open_pairs

    ledger.has_warned |= path.endswith(".json")  # of which entries may be of other splits
    pairs = open_pairs(str(folder / path), config_key="config.evals.x")()
    _each(pairs.images.source, zip(pairs.image_ids, pairs.captions, strict=True), ledger, "pairs")


def _choices(folder, ledger, path, layout="choice"):
    from cyclip_jax.evals.compositional import Compositional
    from cyclip_jax.evals.data.choices import Pictures, open_choices

    settings = Compositional("x", examples=str(folder / path), layout=layout)
    settings.open()
    opened = open_choices(
        settings.examples,
        images=None,
        layout=layout,
        category_key=None,
        config_key="config.evals.x",
    )
    told = [
        pair
        for example in opened.examples
        for pair in zip(example.pictures, example.captions, strict=False)
    ]
    source = Pictures([picture for picture, _ in told])
    _each(source, enumerate(text for _, text in told), ledger, "choices")


def _captions(folder, ledger, path):
    from cyclip_jax.data.tokenizers import read_captions, train_sentencepiece

    captions = read_captions(folder / path)
    for text in captions:
        ledger.pair(-1, number_in(text), "captions")
    train_sentencepiece(captions, vocab_size=64, output=str(folder / "trained.model"))


def _superclasses(folder, ledger, path):
    from cyclip_jax.evals.data.superclasses import read_superclasses

    for name in read_superclasses(str(folder / path), config_key="config.evals.x.superclasses"):
        ledger.pair(-1, number_in(name.replace("_", " ")), "superclasses")


def _tokenizer(folder, ledger, path, name):
    from cyclip_jax.data.tokenizers import create_tokenizer
    from cyclip_jax.interop.hf_tokenizer import tokenizer_files

    ledger.has_warned = True
    size = CLIP_IDS if name == "clip_bpe" else 60
    arguments = {"vocab_size": size, "context_length": 12, "vocabulary": str(folder / path)}
    tokenizer = create_tokenizer(name, **arguments)
    tokens = tokenizer([caption(3), "a kite, grüße 北京", *TEXTS])
    if tokens.dtype != np.int32 or tokens.min() < 0 or tokens.max() >= size:
        raise Fault("range", f"the ids go from {tokens.min()} to {tokens.max()} of {size}")
    tokenizer_files(tokenizer)


def _load(folder, ledger, path, heads=None):
    import cyclip_jax
    from cyclip_jax.errors import UserError

    ledger.has_warned = True
    settings = {} if heads is None else {"vision_heads": heads, "text_heads": heads}
    model, preprocess, tokenize = cyclip_jax.load(folder / path, **settings)
    try:
        tokens = tokenize(["a kite"])
    except UserError:
        tokens = np.zeros((1, model.text.positional_embedding.shape[0]), np.int32)
    images = preprocess(np.zeros((40, 50, 3), np.uint8))
    if images.ndim != 4 or tokens.ndim != 2:
        raise Fault("shape", f"{images.shape} and {tokens.shape}")


def _resume(folder, ledger, path):
    from cyclip_jax.runtime import sections
    from cyclip_jax.workdir.changes import check_changes, history
    from cyclip_jax.workdir.config_json import check_same_model, read_config
    from cyclip_jax.workdir.metrics import MetricWriter
    from cyclip_jax.workdir.saved import newest_meta

    ledger.has_warned = True
    workdir = folder / path
    config = sections.resolve_paths(read_config(workdir), workdir)
    check_same_model(config, workdir)
    history(workdir)
    newest = newest_meta(workdir)
    if newest is not None:
        check_changes(config, workdir, *newest, ["optimizer", "data", "loss"])
    MetricWriter(workdir, first_step=3, enabled=True).close()


def _report(folder, ledger, path):
    from cyclip_jax.report.write import write_report

    ledger.has_warned = True
    write_report([folder / path])


def _evaluate(folder, ledger, path):
    from cyclip_jax.evaluate import evaluate_checkpoint

    ledger.has_warned = True
    evaluate_checkpoint(folder / path, output=folder / "results")


def _config(folder, ledger, path, flags_given):
    from cyclip_jax.runtime import command
    from cyclip_jax.runtime.config_file import define_config
    from cyclip_jax.training.settings import checked

    ledger.has_warned = True
    values = flags.FlagValues()
    argv = ["main", f"--config={folder / path}", *flags_given]
    define_config(values, "The config.", required=True, argv=argv)
    command.parse(values, argv)
    checked(values.config)


READERS: dict[str, Callable[..., None]] = {
    "source": _source,
    "labels": _labels,
    "pairs": _pairs,
    "choices": _choices,
    "captions": _captions,
    "superclasses": _superclasses,
    "tokenizer": _tokenizer,
    "load": _load,
    "resume": _resume,
    "report": _report,
    "evaluate": _evaluate,
    "config": _config,
}


def read_case(case: Case, folder: pathlib.Path) -> None:
    """Writes the files of a case into a folder and reads them as the package does.

    Raises:
      UserError: the input is refused.
      Fault: something does not hold.
    """
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    name, arguments = case.reader
    ledger = Ledger(case)
    logging.getLogger().addHandler(ledger)
    try:
        READERS[name](folder, ledger, **arguments)
    finally:
        logging.getLogger().removeHandler(ledger)
    ledger.close_books()
