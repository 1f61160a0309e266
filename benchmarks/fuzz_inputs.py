"""Inputs of the fuzzer: small valid ones of every format that is read, and what damages them.

`case_of(format, seed, index)` is a pure function. Every picture and every caption says which
example it belongs to, several times over, so that no small damage turns one into another's.
"""

import csv
import functools
import gzip
import io
import json
import math
import pathlib
import random
import re
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

EXAMPLES = 8
SIDE = 64  # pixels of a picture, which is four by four patches
KEPT = 24  # bytes: no damage of this length can make one example's mark another's
PICTURES = ("BMP", "GIF", "ICO", "PCX", "PPM", "TGA", "TIFF", "JPEG2000")
_OLD_RUN = pathlib.Path(__file__).parents[1] / "tests" / "workdir" / "made_before.tar.xz"

_NUMBERS = (0, 1, -1, 127, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_DIGITS = (*map(str, _NUMBERS), "-0.0", "1e999", "NaN", "Infinity", "0x10", "1_0", "٣", "1e-400")
_TEXTS = (
    *("", " ", "\0", '"', '""', "'", "\\", "\n", "\r", "\r\n", "\t", ",", ";", "{}", "{c}", "%s"),
    *("{0..9}", "{", "[a]", "*", "?", "~", ".", "..", "/", "//", "../x", "file://x", "data:,x"),
    *("\u2028", "\ufeff", "\ud83d", "\u202e", "é", "\x1b[31m", "▁", "<|endoftext|>", "&#x0;"),
    *("None", "null", "nan", "-1", "1e999", "x" * 300, "Ω" * 5_000, "&#" + "9" * 5_000 + ";"),
)
# What a JSON writer does not write, put in place of a text afterwards.
_RAW = {"@deep@": "[" * 60_000 + "]" * 60_000, "@digits@": "9" * 5_000, "@large@": "1e999"}
_VALUES = (None, True, False, 0.5, math.nan, [], {}, [[]], [None], {"a": {}}, *_RAW, *_NUMBERS)


class Case(NamedTuple):
    """An input and how it is read.

    Attributes:
      files: {relative path: content}.
      reader: name of what reads it (see `fuzz_readers.READERS`), and its arguments.
      is_paired: whether a reader can tell which caption belongs to which picture.
    """

    files: dict[str, bytes]
    reader: tuple[str, dict[str, Any]]
    is_paired: bool = True


def case_of(file_format: str, seed: int, index: int) -> Case:
    """The case of a number; those of the number 0 are whole, and all others are damaged."""
    rng = random.Random(f"{file_format} {seed} {index}")
    return FORMATS[file_format](rng, index > 0)


# Marks: which example a picture or a caption belongs to


def mark(number: int) -> str:
    return f"k{number:02d}"


def caption(number: int, inner: str = "kite") -> str:
    return " ".join([*[mark(number)] * 2, inner, *[mark(number)] * 3])


def number_in(text: str) -> int:
    """The number of the example that a text is of; -1 where it is damaged."""
    marks = re.findall(r"k\d\d", text)
    is_whole = len(marks) >= 4 and len(set(marks)) == 1
    return int(marks[0][1:]) if is_whole and int(marks[0][1:]) < EXAMPLES else -1


def name_of(number: int, ending: str) -> str:
    return "-".join([mark(number)] * 8) + f".{ending}"


@functools.cache
def _patches(number):
    """A code word of 48 bits as patches, bool [4, 4, 3]; two of them differ in a third or more."""
    rng = random.Random(f"patches {number}")
    return np.array([rng.random() < 0.5 for _ in range(48)]).reshape(4, 4, 3)


def number_seen(image: np.ndarray) -> int:
    """The number of the example that a picture, uint8 [h, w, 3], is of; -1 where it is damaged."""
    side = min(image.shape[:2]) // 4
    if image.shape[0] != image.shape[1] or not side:
        return -1
    means = image[: 4 * side, : 4 * side].reshape(4, side, 4, side, 3).mean((1, 3))
    wrong = [int(((means > 127) != _patches(n)).sum()) for n in range(EXAMPLES)]
    return int(np.argmin(wrong)) if min(wrong) <= 3 else -1


@functools.cache
def picture(number: int, file_format: str = "PNG") -> bytes:
    pixels = np.kron(_patches(number) * 175 + 40, np.ones((SIDE // 4, SIDE // 4, 1)))
    file = io.BytesIO()
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "ICO": {"sizes": [(SIDE, SIDE)]}}
    image = Image.fromarray(pixels.astype(np.uint8))
    image.save(file, file_format, **options.get(file_format, {}))
    return file.getvalue()


# Damage


def damaged(rng: random.Random, content: bytes) -> tuple[bytes, bool]:
    """(the bytes after one to three kinds of damage, whether marks still tell what belongs)."""
    is_paired = True
    for _ in range(rng.choice((1, 1, 2, 3))):
        damage = rng.choice(_DAMAGES)
        if damage in (_remove, _copy):
            length = rng.choice((1, 4, 8, KEPT, KEPT, rng.randint(1, max(len(content), 2))))
            is_paired &= length <= KEPT
            content = damage(rng, content, length)
        else:
            content = damage(rng, content)
    return content, is_paired


def _flip(rng, content):
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng, content):
    return content[: rng.randint(0, len(content))]


def _remove(rng, content, length):
    start = rng.randint(0, len(content))
    return content[:start] + content[start + length :]


def _copy(rng, content, length):
    source, target = (rng.randint(0, len(content)) for _ in range(2))
    part = content[source : source + length]
    rest = content[target + (len(part) if rng.random() < 0.5 else 0) :]
    return content[:target] + part + rest


def _insert(rng, content):
    target = rng.randint(0, len(content))
    return content[:target] + _as_bytes(rng.choice(_TEXTS)) + content[target:]


def _number(rng, content):
    """A whole number of 1 to 8 bytes overwritten by another one."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    written = (rng.choice(_NUMBERS) % 256**size).to_bytes(size, order)
    target = rng.randint(0, max(len(content) - size, 0))
    return content[:target] + written + content[target + size :]


def _digits(rng, content):
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return content
    match = rng.choice(found)
    return content[: match.start()] + rng.choice(_DIGITS).encode() + content[match.end() :]


def _joined(rng, content):
    return content + content


_DAMAGES = (_flip, _flip, _cut, _remove, _copy, _insert, _number, _digits, _joined)


def _as_bytes(text):
    return text.encode("utf-8", "surrogatepass")


def changed_tree(rng: random.Random, tree: Any) -> tuple[Any, bool]:
    """(what JSON holds with one to two of its values changed, whether marks still tell)."""
    tree, is_paired = json.loads(json.dumps(tree)), True
    for _ in range(rng.choice((1, 1, 2))):
        places = [(box, key) for box in _boxes(tree) for key in _keys(box)]
        if not places:
            return rng.choice(_VALUES), is_paired
        box, key = rng.choice(places)
        kind = rng.choice(("value", "value", "text", "remove", "copy"))
        if kind == "remove":
            del box[key]
        elif kind == "copy":
            other, name = rng.choice(places)
            box[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
            is_paired = False
        else:
            box[key] = rng.choice(_VALUES if kind == "value" else _TEXTS)
    return tree, is_paired


def _boxes(tree):
    if isinstance(tree, dict | list):
        yield tree
        for key in _keys(tree):
            yield from _boxes(tree[key])


def _keys(box):
    return list(box) if isinstance(box, dict) else list(range(len(box)))


def as_json(tree: Any) -> bytes:
    text = json.dumps(tree)
    for told, written in _RAW.items():
        text = text.replace(f'"{told}"', written)
    return text.encode()


def _changed_file(rng, files, name, as_tree=json.loads):
    """(files of which one is damaged, as JSON or as bytes, whether marks still tell)."""
    if name.endswith((".json", "metadata", "_METADATA")) and rng.random() < 0.8:
        tree, is_paired = changed_tree(rng, as_tree(files[name]))
        return files | {name: as_json(tree)}, is_paired
    if name.endswith(".jsonl") and rng.random() < 0.8:
        lines = files[name].splitlines()
        number = rng.randrange(len(lines))
        tree, is_paired = changed_tree(rng, as_tree(lines[number]))
        lines[number] = as_json(tree)
        return files | {name: b"\n".join(lines) + b"\n"}, is_paired
    content, is_paired = damaged(rng, files[name])
    return files | {name: content}, is_paired


# Shards


def _read(rng, path, keys=None):
    """How data to train on are read; the graph of the whole pipeline takes seconds to build."""
    (way,) = rng.choices(("read", "prepare", "evaluate", "train"), (80, 12, 4, 4))
    return "source", {"path": path, "caption_key": keys, "way": way}


def _tar(rng, is_damaged):
    if rng.random() < 0.15:
        return _exported(rng, is_damaged)
    members = []
    for number in range(EXAMPLES):
        ending, file_format = (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"))[number % 3]
        told = {"caption": caption(number), "captions": [caption(number, "boat")] * 2}
        key = f"{number:03d}"
        members += [
            (f"{key}.{ending}", picture(number, file_format), tarfile.REGTYPE),
            (f"{key}.json", as_json(told), tarfile.REGTYPE),
            (f"{key}.txt", caption(number).encode(), tarfile.REGTYPE),
        ]
    is_paired, is_by_member = True, is_damaged and rng.random() < 0.6
    if is_by_member:
        members, is_paired = _changed_members(rng, members)
    file = io.BytesIO()
    kind = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=kind, errors="surrogatepass") as archive:
        for name, content, member_kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = member_kind, members[0][0]
            member.size = len(content) if member_kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    content = file.getvalue()
    if is_damaged and not is_by_member:
        content, is_paired = damaged(rng, content)
    keys = rng.choice((None, "json:caption", "json:captions", ("txt", "json:captions")))
    return Case({"0.tar": content}, _read(rng, "0.tar", keys), is_paired)


def _exported(rng, is_damaged):
    """A folder as CLIP_benchmark writes them, of pictures with labels or with captions."""
    is_labelled = rng.random() < 0.5
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(EXAMPLES):
            texts = "\n".join([caption(number), caption(number, "boat")])
            told = ("cls", str(number)) if is_labelled else ("txt", texts)
            for ending, content in (("png", picture(number)), (told[0], told[1].encode())):
                member = tarfile.TarInfo(f"s{number}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    files = {
        "data/dataset_type.txt": b"classification" if is_labelled else b"retrieval",
        "data/test/nshards.txt": b"1",
        "data/test/0.tar": file.getvalue(),
        "data/classnames.txt": "\n".join(map(caption, range(EXAMPLES))).encode(),
        "data/zeroshot_classification_templates.txt": b"a {c}.\nthe {c}.",
    }
    # Damage to the names renames classes, which nobody can tell.
    names = [name for name in files if name.endswith(".txt")] * 2 + ["data/test/0.tar"]
    files = _changed_file(rng, files, rng.choice(names))[0] if is_damaged else files
    return Case(files, ("labels" if is_labelled else "pairs", {"path": "data"}), not is_damaged)


def _changed_members(rng, members):
    number = rng.randrange(len(members))
    key = members[number][0].partition(".")[0]
    own = [n for n, member in enumerate(members) if member[0].startswith(f"{key}.")]
    kind = rng.choice(("drop", "copy", "move", "rename", "rename", "names", "junk", "json", "text"))
    name, content, member_kind = members[number]
    if kind == "drop":
        del members[number]
    elif kind in ("copy", "move"):
        if kind == "move":
            del members[number]
        members.insert(rng.randint(0, len(members)), (name, content, member_kind))
    elif kind == "rename":  # under the name of the next, or under a hostile one
        # Not one that begins with a dot: such members are never data.
        texts = [text for text in _TEXTS if text and "." not in text and text[-1] != "/"]
        other = rng.choice((f"{int(key) + 1:03d}", f"a/b/{key}", rng.choice(texts)))
        for n in own:
            members[n] = (other + members[n][0][len(key) :], *members[n][1:])
    elif kind == "names":  # one member alone: its example loses it
        members[number] = (rng.choice(_TEXTS), content, member_kind)
    elif kind == "junk":
        junk = rng.choice((".DS_Store", f"._{name}", "folder/", name, rng.choice(_TEXTS), "README"))
        kinds = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"S", b"?")
        members.insert(rng.randint(0, len(members)), (junk, b"", rng.choice(kinds)))
    else:
        place = own[1] if kind == "json" else own[2]
        tree, is_paired = changed_tree(rng, json.loads(members[own[1]][1]))
        inner = caption(int(key), rng.choice(_TEXTS)) if rng.random() < 0.5 else rng.choice(_TEXTS)
        written = as_json(tree) if kind == "json" else _as_bytes(inner)
        members[place] = (members[place][0], written, member_kind)
        return members, is_paired
    return members, True


def framed(record: bytes) -> bytes:
    """A record as a TFRecord file has it, with its checksums."""
    from cyclip_jax.data.sources.shard_index import masked_crc32c

    length = struct.pack("<Q", len(record))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, record))
    return length + next(sums) + record + next(sums)


def _tfrecord(rng, is_damaged):
    from tensorflow import train

    def feature(value):
        if isinstance(value, int):
            return train.Feature(int64_list=train.Int64List(value=[value]))
        if isinstance(value, float):
            return train.Feature(float_list=train.FloatList(value=[value]))
        values = value if isinstance(value, list) else [value]
        values = [_as_bytes(v) if isinstance(v, str) else v for v in values]
        return train.Feature(bytes_list=train.BytesList(value=values))

    records = []
    chosen = rng.randrange(EXAMPLES) if is_damaged and rng.random() < 0.6 else None
    for number in range(EXAMPLES):
        told = {"jpg": picture(number, "JPEG"), "txt": caption(number), "key": mark(number)}
        told["captions"] = [caption(number, "boat")] * 2
        if number == chosen:
            values = (0, 0.5, [], "", b"\xff", [caption(number)] * 9, *_TEXTS)
            told[rng.choice(list(told))] = rng.choice(values)
            told.pop(rng.choice([*told, "none", "none"]), None)
        features = train.Features(feature={key: feature(value) for key, value in told.items()})
        record = train.Example(features=features).SerializeToString(deterministic=True)
        if number == chosen and rng.random() < 0.5:
            record = damaged(rng, record)[0]  # with a right checksum
        records.append(framed(record))
    content = b"".join(records)
    if is_damaged and chosen is None:
        content = damaged(rng, content)[0]
        content = rng.choice((content,) * 8 + (gzip.compress(content, mtime=0),))
    keys = rng.choice((None, "captions", ("txt", "captions")))
    return Case({"0.tfrecord": content}, _read(rng, "0.tfrecord", keys))


def _parquet(rng, is_damaged):
    import pyarrow
    import pyarrow.parquet

    is_by_value = is_damaged and rng.random() < 0.5
    captions: list[Any] = [caption(n) for n in range(EXAMPLES)]
    images: list[Any] = [{"bytes": picture(n), "path": name_of(n, "png")} for n in range(EXAMPLES)]
    several = [[text, text] for text in captions]
    if is_by_value:
        number = rng.randrange(EXAMPLES)
        inner = rng.choice([text for text in _TEXTS if text != "\ud83d"])
        captions[number] = rng.choice((None, inner, caption(number, inner)))
        several[number] = rng.choice((None, [], [None], [inner], [caption(number, inner)] * 3))
        bad = ({"bytes": None, "path": "x"}, None, {"bytes": b"", "path": None}, images[number])
        images[number] = rng.choice(bad)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"image": pyarrow.array(images, kind), "caption": captions, "captions": several}
    if is_by_value and rng.random() < 0.4:
        types = (pyarrow.int64(), pyarrow.bool_(), pyarrow.null(), pyarrow.list_(pyarrow.null()))
        nothing = pyarrow.nulls(EXAMPLES, rng.choice(types))
        columns[rng.choice(list(columns))] = nothing
    columns.pop(rng.choice([*columns, *["none"] * 20]), None) if is_by_value else None
    has_sums = rng.random() < 0.7
    options = {"compression": rng.choice(("none", "snappy")), "row_group_size": 3}
    file = io.BytesIO()
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, file, write_page_checksum=has_sums, **options)
    content, is_paired = file.getvalue(), True
    if is_damaged and not is_by_value:
        # Nothing in the format protects the footer, nor pages that are written without checksums.
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        content, is_paired = damaged(rng, content)
        is_paired &= has_sums and content.endswith(file.getvalue()[footer:])
    keys = rng.choice((None, "captions", ("caption", "captions")))
    return Case({"0.parquet": content}, _read(rng, "0.parquet", keys), is_paired)


# Tables and JSON


def _pictures(file_format="PNG", ending="png"):
    return {name_of(n, ending): picture(n, file_format) for n in range(EXAMPLES)}


def _csv(rng, is_damaged):
    reader = rng.choice(("source", "source", "labels", "choices", "captions", "pairs"))
    names = {"labels": ["image", "label"], "choices": ["image", "caption", "false_caption"]}
    header = names.get(reader, ["image", "caption"])
    rows = [[name_of(n, "png"), caption(n), "a wrong one"][: len(header)] for n in range(EXAMPLES)]
    if reader == "pairs":
        rows += [[name_of(n, "png"), caption(n, "boat")] for n in range(EXAMPLES)]
    is_by_field = is_damaged and rng.random() < 0.6
    if is_by_field:
        number = rng.randrange(EXAMPLES)
        inner = caption(number, f"a {rng.choice(_TEXTS)} b")
        column = rng.choice((0, 1, 1))
        rows[number][column] = rng.choice((inner, inner, rng.choice(_TEXTS), rows[number][column]))
        if rng.random() < 0.2:
            rows[number] = rows[number][: rng.randrange(3)] + ["more"] * rng.randrange(3)
    ending = (
        rng.choice((".csv", ".csv", ".tsv"))
        if reader in ("source", "captions", "pairs")
        else ".csv"
    )
    delimiter = "\t" if ending == ".tsv" else ","
    file = io.StringIO(newline="")
    end = rng.choice(("\r\n", "\n", "\r")) if is_by_field else "\n"
    if rng.random() < 0.5:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    else:  # as scripts write them, without quoting
        file.write("".join(delimiter.join(row) + end for row in [header, *rows]))
    codes = ("utf-8-sig", "utf-16", "latin-1", "utf-16-le") if is_by_field else ("utf-8",)
    code = rng.choice(("utf-8",) * 8 + codes)
    content = file.getvalue().encode(code, "replace" if code == "latin-1" else "surrogatepass")
    if is_damaged and not is_by_field:
        content, is_paired = damaged(rng, content)
    else:
        is_paired = True
    name = ("labels" if reader == "labels" else "table") + ending
    how = _read(rng, name) if reader == "source" else (reader, {"path": name})
    return Case(_pictures() | {name: content}, how, is_paired)


def _json(rng, is_damaged):
    kind = rng.choice(("karpathy", "choices", "lines", "winoground", "classes", "superclasses"))
    numbers, reader, arguments = range(EXAMPLES), "choices", {}
    choice = {
        n: {"image": name_of(n, "png"), "caption": caption(n), "false_caption": ["a", "b"]}
        for n in numbers
    }
    name, tree = f"{kind}.json", list(choice.values())
    if kind == "karpathy":
        sentences = [[{"raw": caption(n)}, {"raw": caption(n, "boat")}] for n in numbers]
        tree = {
            "images": [
                {"filename": name_of(n, "png"), "split": "test", "sentences": s}
                for n, s in enumerate(sentences)
            ]
        }
        reader = "pairs"
    elif kind == "choices":
        for row in tree[:3]:
            row |= {"bbox_x": 0, "bbox_y": 0, "bbox_w": SIDE, "bbox_h": SIDE}
    elif kind == "winoground":
        tree = [
            {
                f"{what}_{k}": of(n + k)
                for k in range(2)
                for what, of in (("image", lambda n: name_of(n, "png")), ("caption", caption))
            }
            for n in range(0, EXAMPLES, 2)
        ]
        arguments = {"layout": "winoground"}
    elif kind in ("classes", "superclasses"):
        classes = {caption(n): caption(n) for n in numbers}
        tree = (
            {"classes": classes, "templates": ["a {}."]}
            if kind == "classes"
            else {"all": list(classes)}
        )
        reader = "labels" if kind == "classes" else "superclasses"
        arguments = {"classes": name} if kind == "classes" else {}
    files = {name: as_json(tree)}
    if kind == "lines":
        name = "lines.jsonl"
        files = {name: b"\n".join(map(as_json, tree)) + b"\n"}
    files, is_paired = _changed_file(rng, files, name) if is_damaged else (files, True)
    if kind == "classes":
        rows = ["image,label", *(f"{name_of(n, 'png')},{caption(n)}" for n in numbers)]
        files |= {"labels.csv": "\n".join(rows).encode()}
        name = "labels.csv"
    return Case(_pictures() | files, (reader, {"path": name, **arguments}), is_paired)


# Pictures


def _picture_case(file_format, rng, is_damaged):
    file_format = rng.choice(PICTURES) if file_format is None else file_format
    files = _pictures(file_format, file_format.lower())
    rows = [f"{name},{caption(n)}" for n, name in enumerate(files)]
    if is_damaged:
        for name in rng.sample(sorted(files), 4):
            content = files[name]
            if file_format == "PNG" and rng.random() < 0.5:
                files[name] = _changed_chunk(rng, content)
            else:
                # Most of what matters is in the first bytes.
                head, tail = (content[:64], content[64:]) if rng.random() < 0.5 else (content, b"")
                files[name] = damaged(rng, head)[0] + tail
    files["table.csv"] = "\n".join(["image,caption", *rows]).encode()
    return Case(files, _read(rng, "table.csv"))


def _changed_chunk(rng, content):
    """A PNG file of which one chunk is damaged and has a right checksum, or which has one more."""
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    number = rng.randrange(len(chunks))
    kind = rng.choice(("damage", "damage", "sides", "bomb", "more"))
    if kind == "damage":
        chunks[number] = (chunks[number][0], damaged(rng, chunks[number][1])[0])
    elif kind == "sides":
        sides = struct.pack(">II", *(rng.choice(_NUMBERS) % 2**32 for _ in range(2)))
        chunks[0] = (b"IHDR", sides + chunks[0][1][8:])
    elif kind == "bomb":
        text = rng.choice((b"iCCPx\0\0", b"zTXtx\0\0", b"iTXtx\0\1\0\0\0"))
        chunks.insert(1, (text[:4], text[4:] + zlib.compress(bytes(1 << 26))))
    else:
        names = (b"tRNS", b"gAMA", b"PLTE", b"acTL", b"fdAT", b"eXIf", b"IDAT", b"IEND", b"sBIT")
        chunks.insert(
            rng.randint(1, len(chunks)), (rng.choice(names), rng.randbytes(rng.randrange(40)))
        )
    written = [
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    ]
    return content[:8] + b"".join(written)


# Vocabularies


@functools.cache
def sentencepiece_model() -> bytes:
    from cyclip_jax.data.tokenizers import train_sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        path = train_sentencepiece(
            [caption(n) for n in range(EXAMPLES)], vocab_size=40, output=f"{folder}/model"
        )
        return pathlib.Path(path).read_bytes()


MERGES = ("k 0", "a b</w>", "k0 1</w>", "t e</w>", "i te</w>", "k ite</w>")


def _merges():
    return gzip.compress("\n".join(["#version", *MERGES, ""]).encode(), mtime=0)


def _tokenizer(rng, is_damaged):
    if rng.random() < 0.3:
        text = gzip.decompress(_merges())
        if is_damaged:
            is_inside = rng.random() < 0.6
            text = damaged(rng, text)[0] if is_inside else text
        content = gzip.compress(text, mtime=0)
        content = damaged(rng, content)[0] if is_damaged and not is_inside else content
        return Case({"v.gz": content}, ("tokenizer", {"path": "v.gz", "name": "clip_bpe"}))
    content = sentencepiece_model()
    if is_damaged:
        content = _changed_model(rng, content) if rng.random() < 0.5 else damaged(rng, content)[0]
    return Case({"v.model": content}, ("tokenizer", {"path": "v.model", "name": "sentencepiece"}))


def _changed_model(rng, content):
    """A SentencePiece model of which some fields are changed."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 3))):
        box = rng.choice((rng.choice(model.pieces), model.trainer_spec, model.normalizer_spec))
        field = rng.choice(box.DESCRIPTOR.fields)
        options = (*_NUMBERS, 0.5, math.nan, math.inf, True, *_TEXTS)
        values = [v for v in options if isinstance(v, str) == (field.type == field.TYPE_STRING)]
        value = (
            damaged(rng, getattr(box, field.name))[0]
            if field.type == field.TYPE_BYTES
            else rng.choice(values)
        )
        try:
            setattr(box, field.name, value)
        except (
            TypeError,
            ValueError,
            OverflowError,
            AttributeError,
        ):  # a number too large for the field, say
            box.ClearField(field.name)
    if rng.random() < 0.2:
        del model.pieces[rng.randrange(len(model.pieces)) :]
    return model.SerializeToString(deterministic=True)


# Checkpoints and workdirs


@functools.cache
def _weights():
    from cyclip_jax.interop.weights import shapes_of
    from cyclip_jax.models.presets import abstract_model

    shapes = shapes_of(abstract_model(MODEL)[2])
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


MODEL = {
    **{"name": "ViT-tiny", "image_size": 32, "vision_layers": 1, "vision_width": 8},
    **{"vision_heads": 2, "patch_size": 16, "embed_dim": 8, "context_length": 9},
    **{"vocab_size": 514 + len(MERGES), "text_width": 8, "text_heads": 2, "text_layers": 1},
}


@functools.cache
def _checkpoint_files(kind):
    import torch
    from safetensors.numpy import save

    from cyclip_jax.interop.names import to_transformers

    weights, file = _weights(), io.BytesIO()
    vision = {"image_size": 32, "layers": 1, "width": 8, "head_width": 4, "patch_size": 16}
    text = {
        "context_length": 9,
        "vocab_size": MODEL["vocab_size"],
        "width": 8,
        "heads": 2,
        "layers": 1,
    }
    if kind == "safetensors":
        return {"w.safetensors": save(weights)}
    if kind == "pt":
        torch.save(
            {"state_dict": {k: torch.from_numpy(w) for k, w in weights.items()}, "epoch": 3}, file
        )
        return {"w.pt": file.getvalue()}
    if kind == "open_clip":
        config = {
            "model_cfg": {
                "embed_dim": 8,
                "quick_gelu": True,
                "vision_cfg": vision,
                "text_cfg": text,
            }
        }
        config["preprocess_cfg"] = {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        }
        return {
            "open_clip_config.json": as_json(config),
            "open_clip_model.safetensors": save(weights),
        }
    if kind == "export":
        told = {
            "format": "open_clip",
            "weights": ["w.safetensors"],
            "model": {**MODEL, "quick_gelu": True},
            "step": 3,
        }
        told |= {
            "tokenizer": {"tokenizer": "clip_bpe", "vocabulary": "v.gz"},
            "preprocess": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        }
        return {"cyclip_jax.json": as_json(told), "w.safetensors": save(weights), "v.gz": _merges()}
    towers = [
        {"hidden_act": "quick_gelu", "num_attention_heads": 2, "layer_norm_eps": 1e-5}
        for _ in range(2)
    ]
    config = {
        "model_type": "clip",
        "vision_config": towers[0],
        "text_config": towers[1] | {"vocab_size": MODEL["vocab_size"]},
    }
    processor = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 32},
        "crop_size": 32,
        "resample": 3,
    }
    theirs = to_transformers(weights)
    halves = {f"model-{half}.safetensors": dict(list(theirs.items())[half::2]) for half in range(2)}
    index = {
        "metadata": {},
        "weight_map": {key: name for name, half in halves.items() for key in half},
    }
    files = {name: save(half) for name, half in halves.items()}
    return files | {
        "config.json": as_json(config),
        "preprocessor_config.json": as_json(processor),
        "model.safetensors.index.json": as_json(index),
    }


@functools.cache
def _run_files():
    """The files of a run, with numbers of an evaluation."""
    with tarfile.open(_OLD_RUN) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}
    written = json.loads(files["run/config.json"])
    written["config"]["evals"] = {}
    about = {"top1": {"unit": "share", "better": "more", "is_headline": True}}
    return files | {
        "run/config.json": as_json(written),
        "run/evals/step_3.json": as_json({"step": 3, "probe/top1": 0.5, "probe/top1_ci_low": 0.4}),
        "run/evals/probe/metrics.json": as_json(about),
    }


def _checkpoint(rng, is_damaged):
    kind = rng.choice(("safetensors", "pt", "open_clip", "export", "transformers", "workdir"))
    if kind == "workdir":
        files = dict(_run_files())
        if rng.random() < 0.6:
            del files["run/checkpoints/3/checksums.json"]
        names = [n for n in files if "/model/" in n or n.count("/") == 3 or "/meta/" in n]
        if is_damaged:
            files = _changed_file(rng, files, rng.choice(sorted(names)))[0]
        reader = rng.choice(("load", "resume"))
        return Case(files, (reader, {"path": "run"}))
    files = dict(_checkpoint_files(kind))
    name = rng.choice(sorted(files))
    if is_damaged and name.endswith(".safetensors") and rng.random() < 0.6:
        size = int.from_bytes(files[name][:8], "little")
        tree = changed_tree(rng, json.loads(files[name][8 : 8 + size]))[0]
        head = as_json(tree)
        files[name] = len(head).to_bytes(8, "little") + head + files[name][8 + size :]
    elif is_damaged and name.endswith(".pt") and rng.random() < 0.6:
        files[name] = _changed_archive(rng, files[name])
    elif is_damaged:
        files = _changed_file(rng, files, name)[0]
    is_bare = kind in ("safetensors", "pt")  # and tells no numbers of heads
    arguments = {"path": f"m/{name}" if is_bare else "m", "heads": 2 if is_bare else None}
    return Case({f"m/{n}": content for n, content in files.items()}, ("load", arguments))


def _changed_archive(rng, content):
    """A zip file of which one member is damaged and has a right checksum."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        chosen = rng.choice([name for name in names if name.endswith(".pkl")] * 4 + names)
        for name in names:
            inner = old.read(name)
            new.writestr(zipfile.ZipInfo(name), damaged(rng, inner)[0] if name == chosen else inner)
    return file.getvalue()


def _config(rng, is_damaged):
    kind = rng.choice(("flags", "flags", "file", "report", "report", "evaluate"))
    if kind in ("report", "evaluate"):
        files = dict(_run_files())
        names = ["run/config.json", "run/metrics.jsonl", "run/evals/step_3.json"]
        names = [*names, "run/evals/probe/metrics.json"] if kind == "report" else names[:1]
        files = _changed_file(rng, files, rng.choice(names))[0] if is_damaged else files
        return Case(files, (kind, {"path": "run"}))
    from cyclip_jax.defaults import flat, get_config

    fields = flat(get_config().to_dict())
    values = [repr(v) for v in (*_VALUES, *_TEXTS) if str(v) not in _RAW]
    lines, given = [], ["--config.data.train=pairs.csv", "--config.total_steps=20000"]
    for _ in range(rng.choice((1, 1, 2)) if is_damaged else 0):
        field, value = rng.choice(sorted(fields)), rng.choice(values)
        if kind == "flags":
            value = rng.choice((value, rng.choice(_DIGITS), rng.choice(_TEXTS)))
            given.append(f"--config.{field}={value}")
        else:
            lines.append(f"    config.{field} = {value}")
    source = "\n".join(
        [
            "from configs import common\n\n\ndef get_config():",
            "    config = common.get_config()",
            *lines,
            "    return config\n",
        ]
    )
    content = _as_bytes(source)
    if is_damaged and kind == "file" and rng.random() < 0.4:
        content = damaged(rng, content)[0]
    return Case({"config.py": content}, ("config", {"path": "config.py", "flags_given": given}))


FORMATS: dict[str, Callable[[random.Random, bool], Case]] = {
    "tar": _tar,
    "tfrecord": _tfrecord,
    "parquet": _parquet,
    "csv": _csv,
    "json": _json,
    "jpeg": functools.partial(_picture_case, "JPEG"),
    "png": functools.partial(_picture_case, "PNG"),
    "webp": functools.partial(_picture_case, "WEBP"),
    "picture": functools.partial(_picture_case, None),
    "tokenizer": _tokenizer,
    "checkpoint": _checkpoint,
    "config": _config,
}
