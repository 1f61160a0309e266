"""What the commands share that list which examples of a data set are worth training on.

They go over the data in blocks. What is found out about a block lies in a file of its own until the
list is whole, so that a killed command goes on where it was, and its list has the same bytes.
"""

import concurrent.futures
import dataclasses
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Shaped

from cyclip_jax.data.record import Source
from cyclip_jax.data.result_folder import check_settings
from cyclip_jax.data.shard_workers import Workers, end_with_parent
from cyclip_jax.data.sources import create_source
from cyclip_jax.errors import UserError
from cyclip_jax.files import remove_unfinished, write_atomically, write_json

VERSION = 1  # of what is written; parts of different ones are not mixed
SETTINGS = "settings.json"
_PARTS = "parts"

Found = dict[str, Shaped[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """The data of which a list is written; each attribute has the name of its flag.

    Attributes:
      input: path or pattern of the data, as config.data.train has it.
      source, image_key, caption_key, delimiter: see `create_source`; "" and None mean the source's
        defaults. An example's first caption counts.
      kept: folder of an earlier list, of whose examples alone the new one may have some, or None.
    """

    input: str
    source: str = "auto"
    image_key: str | None = None
    caption_key: str | None = None
    delimiter: str = ","
    kept: str | None = None

    def open(self, config_key: str = "data.input") -> Source:
        """Opens the data; raises UserError where something is wrong with them.

        Args:
          config_key: what the message calls their path.
        """
        return create_source(
            self.source,
            self.input,
            config_key=config_key,
            kept=self.kept,
            image_key=self.image_key,
            caption_key=self.caption_key,
            delimiter=self.delimiter,
        )


def define_input(
    values: flags.FlagValues,
    *,
    flag: str = "input",
    output: str = "Folder for the list, local or gs://….",
) -> None:
    """Defines the flags of `Input`, and --output.

    Args:
      values: where they are defined.
      flag: what names the path of the data.
      output: what --output is for.
    """
    for name, meaning in (
        (flag, "Path or pattern of the data, as config.data.train has it."),
        ("output", output),
    ):
        flags.DEFINE_string(name, None, meaning, required=True, flag_values=values)
    define_reading(values)


def define_reading(values: flags.FlagValues) -> None:
    """Defines the flags of `Input` that say how the data are read, and which of them."""
    for name, default, meaning in (
        ("source", "auto", "Kind of the data: csv, webdataset, …; auto chooses by the path."),
        ("image_key", None, "Column, feature or ending of the picture; by default the usual one."),
        ("caption_key", None, "Column, feature or ending of the caption, of which one counts."),
        ("delimiter", ",", r"Character between the columns of a CSV; \t is a tab."),
        ("kept", None, "Folder of an earlier list; only examples that it keeps are looked at."),
    ):
        flags.DEFINE_string(name, default, meaning, flag_values=values)


def input_of(values: Any, *, flag: str = "input") -> dict[str, Any]:
    """The arguments of `Input` that a command line gives; `flag` names the path of the data."""
    names = [field.name for field in dataclasses.fields(Input)]
    return {name: getattr(values, flag if name == "input" else name) for name in names}


def begin(folder: epath.Path, settings: Mapping[str, Any], flag: str) -> None:
    """Notes in a new folder how it was begun, or compares that with an earlier begin.

    Args:
      folder: which is there.
      settings: what decides about the result.
      flag: what names the folder.

    Raises:
      UserError: the folder was begun with other settings, or holds something else.
    """
    remove_unfinished(folder)
    wanted = json.loads(json.dumps({**settings, "version": VERSION}))
    if (folder / SETTINGS).exists():
        check_settings(folder / SETTINGS, wanted)
    elif any(folder.iterdir()):
        raise UserError(f"{folder} holds other files; set {flag} to a folder of its own")
    else:
        write_json(folder / SETTINGS, wanted)


class Blocks:
    """What is found out about blocks of examples, of which each has a file.

    Args:
      folder: of the list.
      settings: what decides about the result; a folder begun with others is refused.
      examples: how many there are.
      size: examples of a block.

    Attributes:
      folder: where the blocks' files lie.
      ranges: the numbers of the examples of each block.

    Raises:
      UserError: the folder was begun with other settings.
    """

    def __init__(
        self, folder: epath.Path, settings: Mapping[str, Any], examples: int, size: int
    ) -> None:
        self.folder: epath.Path = folder / _PARTS
        self.ranges: list[range] = [
            range(first, min(first + size, examples)) for first in range(0, examples, size)
        ]
        begin(folder, {**settings, "examples": examples}, "--output")

    def results(
        self,
        stage: str,
        compute: Callable[..., Found],
        given: Callable[[range], tuple[Any, ...]],
        pool: concurrent.futures.Executor,
        workers: int,
        progress: Callable[[int, int], object],
    ) -> Iterator[Found]:
        """Yields what is found out about each block, in their order.

        Args:
          stage: names the files of this pass over the data.
          compute: function that finds it out, called in the pool.
          given: function (numbers of examples) -> its arguments, called here, block by block.
          pool: what runs it.
          workers: how many blocks are computed at once; few more are held in memory.
          progress: function that is called with the examples done and 0.

        Raises:
          UserError: a worker died.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / f"{stage}-{number:06d}.npz" for number in range(len(self.ranges))]
        done = {path.name for path in self.folder.iterdir()}
        missing = [
            (path, rows)
            for path, rows in zip(paths, self.ranges, strict=True)
            if path.name not in done
        ]
        progress(sum(map(len, self.ranges)) - sum(len(rows) for _, rows in missing), 0)
        waiting: list[tuple[epath.Path, range, concurrent.futures.Future[Found]]] = []

        def write_first():
            path, rows, future = waiting.pop(0)
            file = io.BytesIO()
            np.savez(file, allow_pickle=False, **future.result())
            write_atomically(path, file.getvalue())
            progress(len(rows), 0)

        try:
            for path, rows in missing:
                if len(waiting) > workers:
                    write_first()
                waiting.append((path, rows, pool.submit(compute, *given(rows))))
            while waiting:
                write_first()
        except concurrent.futures.BrokenExecutor as error:
            raise UserError(
                "a worker was killed, perhaps because memory ran out; the same command continues, "
                "with fewer --workers if memory is short"
            ) from error
        for path in paths:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
                yield dict(found)

    def remove(self) -> None:
        """Removes the files of the blocks, once the list is whole."""
        if self.folder.exists():
            self.folder.rmtree()


def pool(
    workers: int, begin_worker: Callable[..., object], *arguments: Any
) -> concurrent.futures.Executor:
    """What runs functions at top level of a module: this process, or several.

    Args:
      workers: how many processes; with 1 no further process is started.
      begin_worker: function that each process calls first, also at the top level of a module.
      *arguments: its arguments.
    """
    if workers == 1:
        begin_worker(*arguments)
        return Here()
    return concurrent.futures.ProcessPoolExecutor(
        workers,
        Workers(),
        initializer=_begin_process,
        initargs=(begin_worker, *arguments),
    )


def _begin_process(begin_worker, *arguments):
    threading.Thread(target=end_with_parent, daemon=True).start()
    begin_worker(*arguments)


class Here(concurrent.futures.Executor):
    """Runs what it is given at once, in this thread."""

    def submit(self, function, /, *args, **kwargs):
        """The finished Future of function(*args, **kwargs)."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(function(*args, **kwargs))
        return future
