"""Where each example lies in its shard: what makes tar and TFRecord files readable at random.

The index of a shard is a small file beside it, written on the first pass, which reads headers and
passes over payloads, or by `cyclip_jax.data.prepare`. Where the folder cannot be written, it is
kept in the user's cache folder. It holds the shard's size and time of change, and is made anew when
these differ.
"""

import concurrent.futures
import hashlib
import io
import logging
import os
import struct
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, NamedTuple

import google_crc32c
import numpy as np
from etils import epath
from jaxtyping import Int

from cyclip_jax.data.mistaken import LONGEST, mistaken_for
from cyclip_jax.data.record import Unreadable
from cyclip_jax.data.sources.ranges import INDEX_ENDING, is_remote, retrying
from cyclip_jax.errors import UserError
from cyclip_jax.files import file_errors, write_atomically
from cyclip_jax.runtime.started import import_tensorflow

VERSION = 2  # of what an index holds
WORKERS = 16  # shards at a time: of remote ones most of the time is waiting
READ_AHEAD = 1 << 20  # bytes of a remote shard that one request brings

# NumPy parses an array's header as Python, and Python 3.11 counts the depth of what it parses for
# all threads together: two at a time can end in SystemError.
_PARSING = threading.Lock()
# What NumPy raises of an index file that is cut or changed.
_DAMAGED = (
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_KEPT = ("about", "names", "keys", "fault", "offsets", "sizes", "endings", "samples")
_LENGTH = struct.Struct("<Q")
_HEAD = struct.Struct("<QI")  # length and its checksum
_TFRECORD_HEAD = _HEAD.size
TFRECORD_TAIL = 4  # bytes of the content's checksum, which follows it
_ZLIB = (b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")


class Members(NamedTuple):
    """The members of one shard in file order: of a TFRecord file its records.

    Attributes:
      offsets, sizes: of the payloads in bytes, int64 [M].
      endings: number of each member's ending in `names`, int32 [M]; 0 for TFRecord.
      samples: number of the example that each member belongs to, int64 [M], rising from 0.
      names: the endings, list[str].
      keys: what the examples are called, list[str]; empty for TFRecord.
      fault: why the shard could not be read to its end, or "".
    """

    offsets: Int[np.ndarray, "m"]
    sizes: Int[np.ndarray, "m"]
    endings: Int[np.ndarray, "m"]
    samples: Int[np.ndarray, "m"]
    names: list[str]
    keys: list[str]
    fault: str


def open_indexes(paths: list[str], scan: Callable[[IO[bytes], int], Members]) -> list[Members]:
    """The indexes of some shards, read where there are fresh ones, else made and written.

    Args:
      paths: of the shards, list[str].
      scan: `scan_tar` or `scan_tfrecord`.

    Returns:
      A Members for each, in order.

    Raises:
      UserError: a shard cannot be read.
    """
    start, made = time.monotonic(), 0
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        results = []
        for number, (members, is_new) in enumerate(
            pool.map(lambda path: _open_index(path, scan), paths)
        ):
            results.append(members)
            made += is_new
            if is_new and time.monotonic() - start > 10:
                logging.info("indexed %d of %d shards", number + 1, len(paths))
                start = time.monotonic()
    if made:
        logging.info("made the index of %d of %d shards", made, len(paths))
    for path, members in zip(paths, results, strict=True):
        if members.fault:
            logging.warning("%s: %s", path, members.fault)
    return results


def scan_tar(file: IO[bytes], size: int) -> Members:
    """The Members of a tar file as webdataset writes them.

    Neighbouring members with the same path up to the first dot of its last part are one example.
    As in webdataset, members without an ending are passed over, and so is what begins with a dot or
    lies in a folder that does. A tar that follows another one in the same file is read too.

    Args:
      file: opened for reading.
      size: of the file in bytes.
    """
    found = _Found()
    start, fault = 0, ""
    while start is not None and not fault:
        end, fault = _scan_archive(file, start, size, found)
        start = None if fault else _after_zeros(file, end)
    return found.members(fault)


class _Found:
    """Grows by one member of a tar file after the other."""

    def __init__(self):
        self._offsets, self._sizes, self._endings, self._samples = [], [], [], []
        self._names, self._keys = {}, []

    def add(self, member, is_first):
        """Adds a member of an archive, unless its name says that it is no data."""
        key, ending = _split_name(member.name)
        parts = [part for part in member.name.split("/") if part not in (".", "..")]
        if not ending or any(part.startswith(".") for part in parts):
            return False
        if is_first or self._keys[-1] != key:
            self._keys.append(key)
        self._offsets.append(member.offset_data)
        self._sizes.append(member.size)
        self._endings.append(self._names.setdefault(ending, len(self._names)))
        self._samples.append(len(self._keys) - 1)
        return True

    def members(self, fault):
        return _members(
            self._offsets,
            self._sizes,
            self._endings,
            self._samples,
            self._names,
            self._keys,
            fault,
        )


def _scan_archive(file, start, size, found):
    """Adds the members of the archive that begins at `start`; returns (where it ends, fault)."""
    file.seek(start)
    is_first = True  # also of one name with the last one of an archive before
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                # Or it would keep them all. It is no documented attribute, and so not in stubs.
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
                if member.size < 0:
                    return member.offset, _damaged(member.offset, size)
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    return size, f"cut short in {member.name}"
                if found.add(member, is_first):
                    is_first = False
            return archive.offset, _fault_of_end(file, archive.offset, size)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if start:
            return start, _damaged(start, size)
        file.seek(0)
        return start, f"cut short or no tar file: {mistaken_for(file.read(LONGEST)) or error}"


def _fault_of_end(file, offset, size):
    """Why a tar file's members end at `offset`, unless with the block of zeros that is to end them.

    Python's tarfile takes a header that is damaged or cut short for the end.
    """
    file.seek(offset)
    header = file.read(tarfile.BLOCKSIZE)
    if len(header) < tarfile.BLOCKSIZE:
        return f"cut short at byte {offset}"
    return _damaged(offset, size) if header.strip(b"\0") else ""


def _after_zeros(file, offset):
    """Where the block begins in which zeros end that begin at `offset`; None if they do not."""
    file.seek(offset)
    while block := file.read(READ_AHEAD):
        zeros = len(block) - len(block.lstrip(b"\0"))
        offset += zeros
        if zeros < len(block):
            return offset - offset % tarfile.BLOCKSIZE
    return None


def _damaged(offset, size):
    return f"damaged at byte {offset}; the last {size - offset} bytes are lost"


def reason_of(fault: str) -> str:
    """The reason of a shard's fault, in words that many shards share."""
    return "the shard is cut short" if fault.startswith("cut") else "the rest of the shard is lost"


def scan_tfrecord(file: IO[bytes], size: int) -> Members:
    """The Members of an uncompressed TFRecord file; `scan_tar`'s arguments."""
    offsets, sizes, position, fault = [], [], 0, ""
    while position < size and not fault:
        file.seek(position)
        head = file.read(_TFRECORD_HEAD)
        length, checksum = _HEAD.unpack(head.ljust(_TFRECORD_HEAD, b"\0"))
        end = position + _TFRECORD_HEAD + length + TFRECORD_TAIL
        if len(head) == _TFRECORD_HEAD and checksum != masked_crc32c(head[: _LENGTH.size]):
            file.seek(position)
            kind = None if position else _compression(file.read(LONGEST))
            fault = kind or _damaged(position, size)
        elif len(head) < _TFRECORD_HEAD or end > size:
            fault = f"cut short after {len(offsets)} records"
        else:
            offsets.append(position + _TFRECORD_HEAD)
            sizes.append(length)
            position = end
    n = len(offsets)
    return _members(offsets, sizes, np.zeros(n), np.arange(n), {"": 0}, [], fault)


def _compression(head):
    """What a file is that does not begin with a record, or None."""
    if head.startswith(_ZLIB):
        return "it is compressed with zlib as a whole; write it without compression"
    return mistaken_for(head)


def masked_crc32c(content: bytes) -> int:
    """The checksum that TFRecord files have of a length and of a record's content."""
    checksum = google_crc32c.value(content)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def index_path(path: str) -> str:
    """Where the index of a shard is kept beside it."""
    return path + INDEX_ENDING


def make_index(path: str, scan: Callable[[IO[bytes], int], Members]) -> Members:
    """Makes the index of a shard and writes it; returns its Members."""
    size, stamp = _size_and_stamp(path)
    with _opened(path) as file:
        members = scan(file, size)
    _write(path, members, size, stamp)
    return members


def _open_index(path, scan):
    """(Members of a shard, whether its index was made anew)."""
    try:
        for place in (index_path(path), _cache_path(path)):
            members = _read(place, *retrying(_size_and_stamp, path))
            if members is not None:
                return members, False
        return retrying(make_index, path, scan), True
    except Unreadable as error:
        raise UserError(f"the shard {path} cannot be read: {error}") from error


def _members(offsets, sizes, endings, samples, names, keys, fault):
    return Members(
        np.asarray(offsets, np.int64),
        np.asarray(sizes, np.int64),
        np.asarray(endings, np.int32),
        np.asarray(samples, np.int64),
        list(names),
        keys,
        fault,
    )


def _split_name(name):
    """("folder/000017", "seg.png") of "folder/000017.seg.png"."""
    folder, _, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return (f"{folder}/{key}" if folder else key), ending.lower()


def _opened(path):
    if is_remote(path):
        return io.BufferedReader(_RemoteFile(path), READ_AHEAD)
    return open(path.removeprefix("file://"), "rb")


class _RemoteFile(io.RawIOBase):
    """A remote file as Python's buffered reader wants it."""

    def __init__(self, path):
        self._file = import_tensorflow().io.gfile.GFile(path, "rb")

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self):
        return self._file.tell()

    def readinto(self, buffer):
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self):
        self._file.close()
        super().close()


def _size_and_stamp(path):
    if is_remote(path):
        stat = import_tensorflow().io.gfile.stat(path)
        return stat.length, stat.mtime_nsec
    stat = os.stat(path.removeprefix("file://"))  # TensorFlow's tells whole seconds
    return stat.st_size, stat.st_mtime_ns


def _write(path, members, size, stamp):
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        about=np.array([VERSION, size, stamp], np.int64),
        names=np.array("\n".join(members.names)),
        keys=np.array("\n".join(members.keys)),
        fault=np.array(members.fault),
        **{name: getattr(members, name) for name in ("offsets", "sizes", "endings", "samples")},
    )
    for place in (index_path(path), _cache_path(path)):
        try:
            write_atomically(place, buffer.getvalue())
            return
        except file_errors() as error:
            logging.info("the index of %s cannot be kept in %s: %s", path, place, error)


def _read(place, size, stamp):
    """The Members in an index file; None if there is none, or it is another shard's."""
    try:
        with epath.Path(place).open("rb") as file:
            content = io.BytesIO(file.read())
        with _PARSING:
            opened = np.load(content, allow_pickle=False)
            arrays = {name: opened[name] for name in _KEPT}
        if arrays["about"].tolist() != [VERSION, size, stamp]:
            return None
        names, keys = (str(arrays[name]).split("\n") for name in ("names", "keys"))
        return Members(
            arrays["offsets"],
            arrays["sizes"],
            arrays["endings"],
            arrays["samples"],
            names,
            keys if keys != [""] else [],
            str(arrays["fault"]),
        )
    except file_errors():
        return None
    except _DAMAGED as error:
        logging.info("the index %s is damaged and made anew: %s", place, error)
        return None


def _cache_path(path):
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(path.encode()).hexdigest()[:32]
    return os.path.join(folder, "cyclip_jax", "shard_index", name + INDEX_ENDING)
