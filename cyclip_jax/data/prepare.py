"""`python -m cyclip_jax.data.prepare --input=PATTERN --output=DIR`: any data as TFRecord shards.

Training reads examples in random order. Millions of small files, tar files on a disk that turns, or
photographs of ten megapixels make that slow; shards of checked, small pictures with an index make
it fast. A shard is what img2dataset writes with output_format=tfrecord: tf.train.Example records
with "key", the picture's file under "jpg", "png" or "webp", "txt" (here with every caption),
"width" and "height".

The command may be killed at any moment. Given again it keeps the shards that are whole, and its
result is byte for byte that of a run that was left alone. Only the shards' indexes name the time
at which they were written. Of the input it remembers the number of examples and no more: when
pictures or captions have changed, prepare them into another folder. What is dropped is named in
DIR/dropped.jsonl; to try a shard's again, say after a disk was away, delete its 00000.json.

The whole route for Conceptual Captions 3M:

1. Its list, Train_GCC-training.tsv from ai.google.com/research/ConceptualCaptions, holds caption
   and URL without a header. Add one, once:

       sed -i '1s/^/caption\\turl\\n/' Train_GCC-training.tsv

2. Download with img2dataset (pip install img2dataset; 1.47 wants Python 3.12 or older), which makes
   shorter sides of more than 256 pixels that long. Many of the URLs are dead by now. Interrupted,
   the same command continues:

       img2dataset --url_list=Train_GCC-training.tsv --input_format=tsv \\
           --url_col=url --caption_col=caption \\
           --output_format=webdataset --output_folder=cc3m \\
           --image_size=256 --resize_mode=keep_ratio --resize_only_if_bigger=True \\
           --encode_quality=95 --processes_count=16 --thread_count=64

3. Check every picture, and mix the examples, for readers that go from front to back:

       python -m cyclip_jax.data.prepare --input='cc3m/*.tar' --output=cc3m-tfrecord \\
           --shuffle_seed=0

4. Train:

       python -m cyclip_jax.main --config=configs/cc3m.py \\
           --config.data.train='cc3m-tfrecord/*.tfrecord' --workdir=runs/cc3m

For pictures that are here already, name them: --input=train.csv --resize=256.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm
from etils import epath
from jaxtyping import Int
from PIL import Image

from cyclip_jax.data.images import MAX_PIXELS
from cyclip_jax.data.order import order
from cyclip_jax.data.record import Record, Unreadable
from cyclip_jax.data.sources import create_source
from cyclip_jax.data.sources.ranges import is_remote
from cyclip_jax.data.sources.shard_index import make_index, scan_tfrecord
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, write_atomically

VERSION = 1  # of what is written; shards of different ones are not mixed
SETTINGS = "prepare.json"
MANIFEST = "manifest.json"
DROPPED = "dropped.jsonl"

READERS = 8  # threads of a process: where pictures lie far away, most of the time is waiting
READ_AHEAD = 64  # examples
REPORT_EVERY = 32  # examples
BLOCK = 16 << 20  # bytes of a file that are hashed at a time

_TEMPORARY = re.compile(r"(\d+\.\w[\w.]*|prepare\.json|manifest\.json|dropped\.jsonl)\.\d+\.tmp")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # differs from run to run


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides about the result, by the names of the options.

    Attributes:
      input: paths or patterns of the data, tuple of str; see `create_source`.
      source, image_key, caption_key, delimiter, template: see `create_source`; of the keys and
        templates () and None are the source's defaults.
      examples_per_shard: of the input, those included that will be dropped.
      resize: pixels of the shorter side of larger pictures, or None.
      quality: of the JPEG files that `resize` makes.
      max_pixels: larger pictures are dropped, undecoded.
      shuffle_seed: of the order; None keeps the input's.
      check: whether pictures that are only copied are decoded first.
    """

    input: tuple[str, ...]
    source: str = "auto"
    image_key: str | None = None
    caption_key: tuple[str, ...] = ()
    delimiter: str = ","
    template: tuple[str, ...] = ()
    examples_per_shard: int = 10_000
    resize: int | None = None
    quality: int = 95
    max_pixels: int = MAX_PIXELS
    shuffle_seed: int | None = None
    check: bool = True


def prepare(
    settings: Settings,
    output: str | os.PathLike[str],
    *,
    workers: int = 1,
    verify: bool = False,
) -> dict[str, Any]:
    """Writes what is not there yet of the shards and their manifest.

    Args:
      settings: a Settings.
      output: folder for the result, local or remote.
      workers: processes; of 1 none is started.
      verify: whether shards that are there are read and compared with their SHA-256; otherwise
        their size has to be right.

    Returns:
      The manifest, as written to MANIFEST.

    Raises:
      UserError: the input cannot be read, the folder belongs to something else, or no example is
        left.
    """
    folder = absolute(output)
    source = Inputs(settings)
    shards = _shards(settings, len(source))
    with _claimed(folder):
        _begin(folder, settings, len(source), shards)
        unfinished = _unfinished(folder, shards, verify)
        done = len(source) - sum(map(len, unfinished.values()))
        try:
            with _progress_bar(len(source), done) as progress:
                if min(workers, len(unfinished)) > 1:
                    _write_in_processes(unfinished, settings, folder, progress, workers)
                else:
                    for name, indices in unfinished.items():
                        write_shard(source, settings, folder, name, indices, progress)
        finally:
            _remove_temporary(folder)
        return _finish(folder, settings, source, shards)


class Inputs:
    """All data sets of the input, one after the other; a source as far as is needed here."""

    def __init__(self, settings: Settings) -> None:
        in_order = settings.shuffle_seed is None
        self._sources = [
            create_source(
                settings.source,
                path,
                config_key="input",
                image_key=settings.image_key,
                caption_key=settings.caption_key or None,
                templates=settings.template,
                delimiter=settings.delimiter,
                kept_examples=2 * READ_AHEAD if in_order else 0,
            )
            for path in settings.input
        ]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        self.faults: list[tuple[str, str, str]] = [
            fault for source in self._sources for fault in source.faults
        ]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> Record:
        source, inner = self._find(index)
        return source.read(inner)

    def key(self, index: int) -> str:
        source, inner = self._find(index)
        return source.keys([inner])[0]

    def _find(self, index):
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[part], int(index - self._starts[part])


# One picture


def stored_picture(encoded: bytes, settings: Settings) -> tuple[str, bytes, tuple[int, int] | None]:
    """A picture's file as it is stored.

    Orientation tags are ignored, as in training.

    Args:
      encoded: the file's bytes.
      settings: a Settings.

    Returns:
      (feature, bytes, size): "jpg", "png" or "webp"; the file; (width, height), or None where it
      was copied unread.

    Raises:
      Unreadable: it has too many pixels or cannot be decoded.
    """
    feature = _format(encoded)
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            size = picture.size
            if size[0] * size[1] <= settings.max_pixels:
                return _converted(picture, feature, encoded, settings)
    except Exception as error:  # Pillow's decoders raise whatever they stumble upon
        if feature and not settings.check and not settings.resize:
            return feature, encoded, None
        is_unknown = isinstance(error, Image.UnidentifiedImageError)
        detail = "no picture of a known format" if is_unknown else _ADDRESS.sub("", str(error))
        raise Unreadable("the image cannot be decoded", detail) from error
    detail = f"{size[0]} × {size[1]} pixels, more than --max_pixels={settings.max_pixels}"
    raise Unreadable("the image is too large", detail)


def _format(encoded):
    """The feature for a file that may be stored as it is, by its content; None for others."""
    if encoded[:3] == b"\xff\xd8\xff":
        return "jpg"
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "webp"
    return None


def _converted(picture, feature, encoded, settings):
    """`stored_picture`'s result for an open picture."""
    if settings.resize and min(picture.size) > settings.resize:
        shorter = min(picture.size)
        # As training does it, and torchvision: the longer side is rounded down.
        width, height = (settings.resize * side // shorter for side in picture.size)
        pixels = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        return "jpg", _encoded(pixels, "JPEG", quality=settings.quality), pixels.size
    if feature is None:
        return "png", _encoded(picture.convert("RGB"), "PNG"), picture.size
    if settings.check:
        picture.load()
    return feature, encoded, picture.size


def _encoded(pixels, file_format, **options):
    pixels.info.clear()  # comments and colour profiles, which Pillow would write again
    file = io.BytesIO()
    pixels.save(file, file_format, **options)
    return file.getvalue()


@contextlib.contextmanager
def _pillow_at_work():
    """Pillow without its own limit of pixels, instead of which ours holds, and without warnings."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


# One shard


def write_shard(
    source: Inputs,
    settings: Settings,
    folder: epath.Path,
    name: str,
    indices: Int[np.ndarray, "n"],
    progress: Callable[[int, int], object],
) -> None:
    """Writes a shard, its index, and when they are whole its report NAME.json.

    Args:
      source: an Inputs.
      settings: a Settings.
      folder: of the result, an epath.Path.
      name: of the shard without ending.
      indices: of its examples in the source, int64 [n].
      progress: called now and then with (examples done, of these dropped) since the last call.
    """
    path = folder / f"{name}.tfrecord"
    unfinished = folder / f"{path.name}.{os.getpid()}.tmp"
    try:
        with _pillow_at_work(), tf.io.TFRecordWriter(os.fspath(unfinished)) as writer:
            dropped = _write_records(writer, source, settings, indices, progress)
        # What is hashed is what was stored, also where that is a service.
        size, sha256 = unfinished.stat().length, _sha256(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    make_index(os.fspath(path), scan_tfrecord)
    report = {
        "examples": len(indices) - len(dropped),
        "bytes": size,
        "sha256": sha256,
        "dropped": _by_reason(dropped),
        "dropped_rows": dropped,
    }
    write_atomically(folder / f"{name}.json", _json(report))


def _write_records(writer, source, settings, indices, progress):
    """Writes the examples that can be used; returns the others, as they stand in DROPPED."""
    dropped, reported = [], (0, 0)
    for done, (index, future) in enumerate(_read_ahead(source, indices), start=1):
        key = source.key(index)
        try:
            writer.write(_example(key, future.result(), settings))
        except Unreadable as error:
            dropped.append(
                {"key": key, "index": index, "reason": error.reason, "detail": error.detail}
            )
        if done % REPORT_EVERY == 0 or done == len(indices):
            progress(done - reported[0], len(dropped) - reported[1])
            reported = done, len(dropped)
    return dropped


def _example(key, record, settings):
    """A serialised tf.train.Example; raises Unreadable."""
    feature, encoded, size = stored_picture(record.image, settings)
    values = {"key": [key], feature: [encoded], "txt": record.captions}
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=map(_as_bytes, content)))
        for name, content in values.items()
    }
    for name, side in zip(("width", "height"), size or (), strict=False):
        features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[side]))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)  # a map has no order of its own


def _as_bytes(value):
    # JSON and tar files may hold lone surrogates, which UTF-8 has no bytes for.
    return value.encode("utf-8", "replace") if isinstance(value, str) else value


def _read_ahead(source, indices):
    """Yields each example's (index, future of its Record) in order."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        waiting = collections.deque()
        try:
            for index in map(int, indices):
                waiting.append((index, pool.submit(source.read, index)))
                if len(waiting) == READ_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def _sha256(path):
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


# What is there already


def _shards(settings, n):
    """{name: indices of its examples, int64} of all shards."""
    indices = order(settings.shuffle_seed or 0, 0, n, settings.shuffle_seed is not None)
    starts = range(0, n, settings.examples_per_shard)
    return {
        f"{number:05d}": indices[start : start + settings.examples_per_shard]
        for number, start in enumerate(starts)
    }


@contextlib.contextmanager
def _claimed(folder):
    """Makes the folder, and where the file system knows locks keeps other processes from it."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_remote(os.fspath(folder)):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor, folder):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process is writing into {folder}; let it finish, or stop it"
        ) from error
    except OSError as error:
        logging.info("%s cannot be locked: %s", folder, error)  # some network file systems


def _begin(folder, settings, n, shards):
    """Writes the settings into a new folder, or compares them with those of one begun before."""
    wanted = json.loads(_json({**dataclasses.asdict(settings), "examples": n, "version": VERSION}))
    present = [path.name for path in folder.iterdir()]
    is_new = SETTINGS not in present
    if not is_new:
        _check_settings(folder, wanted)
    own = set() if is_new else {f"{name}.tfrecord" for name in shards}
    foreign = sorted(name for name in present if name.endswith(".tfrecord") and name not in own)
    if foreign:
        named = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise UserError(
            f"{folder} holds shards that are not of this command: {named}; "
            "set --output to a folder of its own"
        )
    _remove_temporary(folder)
    if is_new:
        write_atomically(folder / SETTINGS, _json(wanted))


def _check_settings(folder, wanted):
    """Raises UserError where the folder was begun with others."""
    try:
        found = dict(json.loads((folder / SETTINGS).read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{folder / SETTINGS} is not of this command; set --output to a folder of its own"
        ) from error
    titles = {"examples": "the number of input examples", "version": "the format's version"}
    differing = [
        f"{titles.get(name, f'--{name}')} was {found.get(name)!r} and is {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise UserError(
            f"{folder} was begun otherwise: {'; '.join(differing)}; "
            "repeat that command, or set --output to another folder"
        )


def _unfinished(folder, shards, verify):
    """Those of the shards that are not there or not whole."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        whole = list(pool.map(lambda name: _is_whole(folder, name, verify), shards))
    return {name: shards[name] for name, there in zip(shards, whole, strict=True) if not there}


def _is_whole(folder, name, verify):
    path = folder / f"{name}.tfrecord"
    try:
        report = _report(folder, name)
        size = path.stat().length
    except (FileNotFoundError, tf.errors.NotFoundError, ValueError):
        return False
    return size == report["bytes"] and (not verify or _sha256(path) == report["sha256"])


def _remove_temporary(folder):
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


# Many processes


def _write_in_processes(shards, settings, folder, progress, workers):
    """`write_shard` of each of the shards, in as many processes as there are workers.

    Raises:
      UserError: what a worker raised, or that one died.
    """
    context = multiprocessing.get_context("spawn")  # TensorFlow's threads do not survive a fork
    waiting = iter(shards.items())
    processes = {}
    try:
        with _interrupts_ignored():  # by the workers, for good: they inherit it
            for _ in range(min(workers, len(shards))):
                here, there = context.Pipe()
                arguments = (there, settings, os.fspath(folder))
                processes[here] = context.Process(target=_work, args=arguments, daemon=True)
                processes[here].start()
                there.close()  # so that a worker's death ends the pipe
        for connection in processes:
            connection.send(next(waiting))
        busy = set(processes)
        while busy:
            for connection in multiprocessing.connection.wait(busy):
                message = _receive(connection, processes[connection])
                if message is not None:
                    progress(*message)
                elif (shard := next(waiting, None)) is not None:
                    # It is one of ours: `wait` gives back what it was given, not any handle.
                    connection.send(shard)  # pyright: ignore[reportAttributeAccessIssue]
                else:
                    busy.discard(connection)
    finally:
        for connection, process in processes.items():
            if process.pid is not None:
                process.terminate()
                process.join()
            connection.close()


def _receive(connection, process):
    """A worker's (examples, dropped), or None at the end of a shard; raises UserError."""
    try:
        message = connection.recv()
    except (EOFError, ConnectionError) as error:
        process.join()
        code = process.exitcode
        why = "was killed, perhaps for want of memory" if code == -signal.SIGKILL else "ended"
        raise UserError(
            f"a worker {why} (exit status {code}); the same command continues, with fewer "
            "--workers if memory is short"
        ) from error
    if isinstance(message, UserError):
        raise message
    return message


def _work(connection, settings, folder):
    """A worker: writes the shards it is told to, until it is terminated."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        source, folder = Inputs(settings), absolute(folder)
        while True:
            name, indices = connection.recv()
            write_shard(
                source, settings, folder, name, indices, lambda *counts: connection.send(counts)
            )
            connection.send(None)
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except (UserError, OSError, tf.errors.OpError) as error:
        connection.send(UserError(_sentence(error)))


def _end_with_parent():
    """Ends a worker whose parent was killed; else both it and the next run would write."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


@contextlib.contextmanager
def _interrupts_ignored():
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


# The end


def _finish(folder, settings, source, shards):
    """Writes DROPPED and MANIFEST from the reports of all shards; returns the manifest."""
    reports = {name: _report(folder, name) for name in shards}
    rows = [row for report in reports.values() for row in report["dropped_rows"]]
    rows.sort(key=lambda row: row["index"])
    faults = [
        {"key": key, "index": None, "reason": reason, "detail": detail}
        for key, reason, detail in source.faults
    ]
    lines = [json.dumps(row) + "\n" for row in faults + rows]
    write_atomically(folder / DROPPED, "".join(lines))
    manifest = {
        "settings": dataclasses.asdict(settings),
        "input_examples": len(source),
        "examples": sum(report["examples"] for report in reports.values()),
        "bytes": sum(report["bytes"] for report in reports.values()),
        "dropped": _by_reason(rows),
        "damaged_inputs": len(faults),
        "shards": {
            f"{name}.tfrecord": {key: report[key] for key in ("examples", "bytes", "sha256")}
            for name, report in reports.items()
        },
    }
    if not manifest["examples"]:
        raise UserError(
            f"none of the {len(source)} examples can be used ({_named(manifest['dropped'])}); "
            f"{folder / DROPPED} names each"
        )
    write_atomically(folder / MANIFEST, _json(manifest))
    return manifest


def _report(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def _by_reason(rows):
    """{reason: number of rows}, the commonest first."""
    counts = collections.Counter(row["reason"] for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _named(counts):
    return ", ".join(f"{count} × {reason}" for reason, count in counts.items())


def _json(value):
    return json.dumps(value, indent=1) + "\n"


def _sentence(error):
    """What an expected error says, in terms of the options."""
    if not isinstance(error, UserError):
        text = getattr(error, "message", None) or str(error)
        return f"{text}; once that is mended, the same command continues"
    message = str(error).replace("config.data.templates", "--template")
    return message.replace("config.data.", "--")


@contextlib.contextmanager
def _progress_bar(total, done):
    """A function of (examples, dropped), shown as a bar, or in a log as a line a minute."""
    interval = 0.2 if sys.stderr.isatty() else 60
    with tqdm.tqdm(total=total, initial=done, unit=" examples", mininterval=interval) as bar:
        dropped = 0

        def progress(more, more_dropped):
            nonlocal dropped
            dropped += more_dropped
            bar.set_postfix_str(f"{dropped} dropped" if dropped else "", refresh=False)
            bar.update(more)

        yield progress


# The command line


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cyclip_jax.data.prepare",
        description="Write any data set as TFRecord shards that can be read at random. "
        "Stopped in whatever way, the same command continues.",
    )
    add, default = parser.add_argument, Settings(())
    add("--input", required=True, action="append", help="path or pattern of the data; repeatable")
    add("--output", required=True, help="folder for the shards, local or gs://…")
    add("--source", default=default.source, help="csv, webdataset, …; default by the path")
    add("--image_key", help="where the picture is; default the source's")
    add("--caption_key", action="append", default=[], help="where captions are; repeatable")
    add("--delimiter", default=default.delimiter, help=r"of a csv file; \t is a tab")
    add("--template", action="append", default=[], help='"a photo of {}"; repeatable')
    add("--examples_per_shard", type=_positive, default=default.examples_per_shard)
    add("--workers", type=_positive, default=_cores(), help="processes; default one a core")
    add("--resize", type=_positive, help="pixels of the shorter side of larger pictures")
    add("--quality", type=_quality, default=default.quality, help="of resized JPEGs, 1 to 100")
    add("--max_pixels", type=_positive, default=default.max_pixels, help="larger ones are dropped")
    add("--shuffle_seed", type=int, help="shuffles the examples; default the order of the input")
    add(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=default.check,
        help="decode pictures that are only copied, and drop those that cannot be",
    )
    add("--verify", action="store_true", help="hash the shards that are there already")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    args = parse_arguments(arguments)
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)}
    given: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
    }
    settings = Settings(**given)
    try:
        manifest = prepare(settings, args.output, workers=args.workers, verify=args.verify)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    except (UserError, OSError, tf.errors.OpError) as error:
        print(_sentence(error), file=sys.stderr)
        return 1
    dropped = manifest["dropped"]
    left_out = f", {sum(dropped.values())} dropped ({_named(dropped)})" if dropped else ""
    print(
        f"{args.output}: {manifest['examples']} examples in {len(manifest['shards'])} shards, "
        f"{manifest['bytes'] / 1e9:.3g} GB{left_out}"
    )
    pattern = f"{args.output.rstrip('/')}/*.tfrecord"
    print(f"train from it with --config.data.train={shlex.quote(pattern)}")
    return 0


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _quality(text):
    number = _positive(text)
    if number > 100:
        raise argparse.ArgumentTypeError(f"{text} is more than 100")
    return number


if __name__ == "__main__":
    sys.exit(main())
