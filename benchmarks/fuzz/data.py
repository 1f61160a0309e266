"""Small data of every format, whole or damaged.

Every picture and every caption says which example it belongs to, several times over, so that no
small damage turns one into another's.
"""

import csv
import functools
import gzip
import io
import json
import random
import re
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

from benchmarks.fuzz.damage import (
    NUMBERS,
    TEXTS,
    Case,
    as_json,
    changed_file,
    changed_tree,
    damaged,
    encoded,
)

EXAMPLES = 8
SIDE = 64  # pixels of a picture, which is four by four patches
_RARE = ("BMP", "GIF", "ICO", "PCX", "PPM", "TGA", "TIFF", "JPEG2000")


def mark(number: int) -> str:
    """The word that stands for an example."""
    return f"k{number:02d}"


def caption(number: int, inner: str = "kite") -> str:
    """A text that has the mark of an example five times."""
    return " ".join([*[mark(number)] * 2, inner, *[mark(number)] * 3])


def number_in(text: str) -> int:
    """The number of the example that a text is of; -1 where it is damaged."""
    marks = re.findall(r"k\d\d", text)
    is_whole = len(marks) >= 4 and len(set(marks)) == 1
    return int(marks[0][1:]) if is_whole and int(marks[0][1:]) < EXAMPLES else -1


def name_of(number: int, ending: str = "png") -> str:
    """The name of an example's picture: too long to become another's."""
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
    """The file of an example's picture."""
    pixels = np.kron(_patches(number) * 175 + 40, np.ones((SIDE // 4, SIDE // 4, 1)))
    file, options = io.BytesIO(), {"JPEG": {"quality": 95, "subsampling": 0}}
    Image.fromarray(pixels.astype(np.uint8)).save(file, file_format, **options.get(file_format, {}))
    return file.getvalue()


def pictures(file_format: str = "PNG", ending: str = "png") -> dict[str, bytes]:
    """The files of all pictures."""
    return {name_of(n, ending): picture(n, file_format) for n in range(EXAMPLES)}


def _read(rng, path, keys=None):
    """How data to train on are read; the graph of the whole pipeline takes seconds to build."""
    (way,) = rng.choices(("read", "prepare", "evaluate", "train"), (90, 8, 1, 1))
    return "source", {"path": path, "caption_key": keys, "way": way}


# Shards


def _packed(members, kind=tarfile.PAX_FORMAT):
    """The tar file of (name, content, type) of each member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind, errors="surrogatepass") as archive:
        for name, content, member_kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = member_kind, members[0][0]
            member.size = len(content) if member_kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def tar(rng: random.Random, is_damaged: bool) -> Case:
    """A tar of webdataset, or a folder with one as CLIP_benchmark has it."""
    if rng.random() < 0.15:
        return _exported(rng, is_damaged)
    members = []
    for number in range(EXAMPLES):
        ending, file_format = (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"))[number % 3]
        told = as_json({"caption": caption(number), "captions": [caption(number, "boat")] * 2})
        contents = (ending, picture(number, file_format)), ("json", told)
        for kind, content in (*contents, ("txt", caption(number).encode())):
            members.append((f"{number:03d}.{kind}", content, tarfile.REGTYPE))
    is_paired, is_by_member = True, is_damaged and rng.random() < 0.6
    if is_by_member:
        members, is_paired = _changed_members(rng, members)
    content = _packed(members, rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
    if is_damaged and not is_by_member:
        content, is_paired = damaged(rng, content)
    keys = rng.choice((None, "json:caption", "json:captions", ("txt", "json:captions")))
    return Case({"0.tar": content}, _read(rng, "0.tar", keys), is_paired)


def _changed_members(rng, members):
    number = rng.randrange(len(members))
    name, content, member_kind = members[number]
    key = name[:3]
    own = [n for n, member in enumerate(members) if member[0][:3] == key]
    kind = rng.choice(("drop", "copy", "move", "rename", "rename", "name", "junk", "json", "text"))
    if kind in ("drop", "move"):
        del members[number]
    if kind in ("copy", "move"):
        members.insert(rng.randint(0, len(members)), (name, content, member_kind))
    elif kind == "rename":
        # Not to what begins with a dot or has no ending then: such members are never data.
        texts = [text for text in TEXTS if text and "." not in text and text[-1] not in "/\0"]
        other = rng.choice((f"{int(key) + 1:03d}", f"a/b/{key}", rng.choice(texts)))
        for n in own:
            members[n] = (other + members[n][0][3:], *members[n][1:])
    elif kind == "name":  # of one member alone: its example loses it
        members[number] = (rng.choice(TEXTS), content, member_kind)
    elif kind == "junk":
        junk = rng.choice((".DS_Store", f"._{name}", "folder/", name, rng.choice(TEXTS), "README"))
        kinds = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"S", b"?")
        members.insert(rng.randint(0, len(members)), (junk, b"", rng.choice(kinds)))
    elif kind == "json":
        tree, is_paired = changed_tree(rng, json.loads(members[own[1]][1]))
        members[own[1]] = (members[own[1]][0], as_json(tree), member_kind)
        return members, is_paired
    elif kind == "text":
        text = rng.choice((caption(int(key), rng.choice(TEXTS)), rng.choice(TEXTS)))
        members[own[2]] = (members[own[2]][0], encoded(text), member_kind)
    return members, True


def _exported(rng, is_damaged):
    is_labelled, members = rng.random() < 0.5, []
    for number in range(EXAMPLES):
        texts = "\n".join([caption(number), caption(number, "boat")])
        ending, text = ("cls", str(number)) if is_labelled else ("txt", texts)
        for kind, content in (("png", picture(number)), (ending, text.encode())):
            members.append((f"s{number}.{kind}", content, tarfile.REGTYPE))
    files = {
        "data/dataset_type.txt": b"classification" if is_labelled else b"retrieval",
        "data/test/nshards.txt": b"1",
        "data/test/0.tar": _packed(members),
        "data/classnames.txt": "\n".join(map(caption, range(EXAMPLES))).encode(),
        "data/zeroshot_classification_templates.txt": b"a {c}.\nthe {c}.",
    }
    files = changed_file(rng, files, rng.choice(sorted(files)))[0] if is_damaged else files
    # Damage to names and labels renames classes, which nobody can tell.
    return Case(files, ("labels" if is_labelled else "pairs", {"path": "data"}), not is_damaged)


def tfrecord(rng: random.Random, is_damaged: bool) -> Case:
    """A TFRecord file as img2dataset writes it."""
    from cyclip_jax.data.sources.shard_index import masked_crc32c

    content = b""
    chosen = rng.randrange(EXAMPLES) if is_damaged and rng.random() < 0.6 else None
    for number in range(EXAMPLES):
        told = {"jpg": picture(number, "JPEG"), "txt": caption(number), "key": mark(number)}
        told["captions"] = [caption(number, "boat")] * 2
        if number == chosen:
            values = (0, 0.5, [], "", b"\xff", [caption(number)] * 9, *TEXTS)
            told[rng.choice(list(told))] = rng.choice(values)
            told.pop(rng.choice([*told, "none", "none"]), None)
        record = _record(told)
        if number == chosen and rng.random() < 0.5:
            record = damaged(rng, record)[0]  # with a right checksum
        length = struct.pack("<Q", len(record))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, record)]
        content += length + sums[0] + record + sums[1]
    if is_damaged and chosen is None:
        content = damaged(rng, content)[0]
        content = rng.choice((content,) * 8 + (gzip.compress(content, mtime=0),))
    keys = rng.choice((None, "captions", ("txt", "captions")))
    return Case({"0.tfrecord": content}, _read(rng, "0.tfrecord", keys))


def _record(told):
    from tensorflow import train

    features = {}
    for name, value in told.items():
        if isinstance(value, int):
            features[name] = train.Feature(int64_list=train.Int64List(value=[value]))
        elif isinstance(value, float):
            features[name] = train.Feature(float_list=train.FloatList(value=[value]))
        else:
            values = value if isinstance(value, list) else [value]
            values = [encoded(v) if isinstance(v, str) else v for v in values]
            features[name] = train.Feature(bytes_list=train.BytesList(value=values))
    example = train.Example(features=train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def parquet(rng: random.Random, is_damaged: bool) -> Case:
    """A Parquet file as Hugging Face exports it."""
    import pyarrow
    import pyarrow.parquet

    is_by_value = is_damaged and rng.random() < 0.5
    captions = [caption(n) for n in range(EXAMPLES)]
    images = [{"bytes": picture(n), "path": name_of(n)} for n in range(EXAMPLES)]
    several = [[text, text] for text in captions]
    if is_by_value:
        number = rng.randrange(EXAMPLES)
        inner = rng.choice([text for text in TEXTS if text != "\ud83d"])
        captions[number] = rng.choice((None, inner, caption(number, inner)))
        several[number] = rng.choice((None, [], [None], [inner], [caption(number, inner)] * 3))
        bad = ({"bytes": None, "path": "x"}, None, {"bytes": b"", "path": None}, images[number])
        images[number] = rng.choice(bad)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"image": pyarrow.array(images, kind), "caption": captions, "captions": several}
    if is_by_value and rng.random() < 0.4:
        types = (pyarrow.int64(), pyarrow.bool_(), pyarrow.null(), pyarrow.list_(pyarrow.null()))
        columns[rng.choice(list(columns))] = pyarrow.nulls(EXAMPLES, rng.choice(types))
        columns.pop(rng.choice([*columns, *["none"] * 9]), None)
    has_sums, file = rng.random() < 0.7, io.BytesIO()
    options = {"compression": rng.choice(("none", "snappy")), "row_group_size": 3}
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, file, write_page_checksum=has_sums, **options)
    content, is_paired = file.getvalue(), True
    if is_damaged and not is_by_value:
        # Nothing in the format protects the footer, nor pages that are written without checksums.
        footer = content[-8 - int.from_bytes(content[-8:-4], "little") :]
        content, is_paired = damaged(rng, content)
        is_paired &= has_sums and content.endswith(footer)
    keys = rng.choice((None, "captions", ("caption", "captions")))
    return Case({"0.parquet": content}, _read(rng, "0.parquet", keys), is_paired)


# Tables and JSON


def table(rng: random.Random, is_damaged: bool) -> Case:
    """A CSV or TSV: of pairs, labels, choices or captions alone."""
    reader = rng.choice(("source", "source", "labels", "choices", "captions", "pairs"))
    names = {"labels": ["image", "label"], "choices": ["image", "caption", "false_caption"]}
    header = names.get(reader, ["image", "caption"])
    rows = [[name_of(n), caption(n), "a wrong one"][: len(header)] for n in range(EXAMPLES)]
    if reader == "pairs":
        rows += [[name_of(n), caption(n, "boat")] for n in range(EXAMPLES)]
    is_by_field, is_paired = is_damaged and rng.random() < 0.6, True
    if is_by_field:
        number = rng.randrange(EXAMPLES)
        inner = caption(number, f"a {rng.choice(TEXTS)} b")
        rows[number][rng.choice((0, 1, 1))] = rng.choice((inner, inner, rng.choice(TEXTS)))
        if rng.random() < 0.2:
            rows[number] = rows[number][: rng.randrange(3)] + ["more"] * rng.randrange(3)
    has_tabs = reader in ("source", "captions", "pairs") and rng.random() < 0.3
    delimiter, ending = ("\t", ".tsv") if has_tabs else (",", ".csv")
    end = rng.choice(("\r\n", "\n", "\r")) if is_by_field else "\n"
    file = io.StringIO(newline="")
    if rng.random() < 0.5:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    else:  # as scripts write them, without quoting
        file.write("".join(delimiter.join(row) + end for row in [header, *rows]))
    codes = ("utf-8-sig", "utf-16", "latin-1", "utf-16-le") if is_by_field else ()
    code = rng.choice(("utf-8",) * 8 + codes)
    content = file.getvalue().encode(code, "replace" if code == "latin-1" else "surrogatepass")
    if is_damaged and not is_by_field:
        content, is_paired = damaged(rng, content)
    name = ("labels" if reader == "labels" else "table") + ending
    how = _read(rng, name) if reader == "source" else (reader, {"path": name})
    return Case(pictures() | {name: content}, how, is_paired)


def json_file(rng: random.Random, is_damaged: bool) -> Case:
    """A JSON file of pairs, choices, classes or superclasses."""
    kind = rng.choice(("karpathy", "choices", "lines", "winoground", "classes", "superclasses"))
    numbers, reader, arguments, name = range(EXAMPLES), "choices", {}, f"{kind}.json"
    box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": SIDE, "bbox_h": SIDE}
    tree = [{"image": name_of(n), "caption": caption(n), "false_caption": ["a"]} for n in numbers]
    if kind == "karpathy":
        rows = [{"filename": name_of(n), "split": "test", "sentences": []} for n in numbers]
        for number, row in enumerate(rows):
            row["sentences"] = [{"raw": caption(number)}, {"raw": caption(number, "boat")}]
        tree, reader = {"images": rows}, "pairs"
    elif kind == "choices":
        tree = [row | box for row in tree[:3]] + tree[3:]
    elif kind == "winoground":
        arguments = {"layout": "winoground"}
        tree = [
            {"image_0": name_of(n), "image_1": name_of(n + 1)}
            | {"caption_0": caption(n), "caption_1": caption(n + 1)}
            for n in numbers[::2]
        ]
    elif kind == "classes":
        tree = {"classes": {caption(n): caption(n) for n in numbers}, "templates": ["a {}."]}
        reader, arguments = "labels", {"classes": name}
    elif kind == "superclasses":
        tree, reader = {"all": [caption(n) for n in numbers]}, "superclasses"
    name, lines = (f"{kind}.jsonl", tree) if kind == "lines" else (name, [tree])
    files = {name: b"\n".join(map(as_json, lines))}
    files, is_paired = changed_file(rng, files, name) if is_damaged else (files, True)
    if kind == "classes":
        name = "labels.csv"
        rows = ["image,label", *(f"{name_of(n)},{caption(n)}" for n in numbers)]
        files |= {name: "\n".join(rows).encode()}
    return Case(pictures() | files, (reader, {"path": name, **arguments}), is_paired)


# Pictures


def picture_files(file_format: str | None, rng: random.Random, is_damaged: bool) -> Case:
    """Pictures of one format, or of a rare one, and a table of them."""
    file_format = file_format or rng.choice(_RARE)
    files = pictures(file_format, file_format.lower())
    rows = [f"{name},{caption(n)}" for n, name in enumerate(files)]
    for name in rng.sample(sorted(files), 4) if is_damaged else ():
        content = files[name]
        if file_format == "PNG" and rng.random() < 0.5:
            files[name] = _changed_chunk(rng, content)
        else:  # most of what matters is in the first bytes
            length = rng.choice((64, len(content)))
            files[name] = damaged(rng, content[:length])[0] + content[length:]
    files["table.csv"] = "\n".join(["image,caption", *rows]).encode()
    return Case(files, _read(rng, "table.csv"))


def _changed_chunk(rng, content):
    """A PNG file of which one chunk is damaged and has a right checksum, or which has one more."""
    chunks, place = [], 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    number = rng.randrange(len(chunks))
    kind = rng.choice(("damage", "damage", "sides", "bomb", "more"))
    if kind == "damage":
        chunks[number] = (chunks[number][0], damaged(rng, chunks[number][1])[0])
    elif kind == "sides":
        sides = struct.pack(">II", *(rng.choice(NUMBERS) % 2**32 for _ in range(2)))
        chunks[0] = (b"IHDR", sides + chunks[0][1][8:])
    elif kind == "bomb":
        text = rng.choice((b"iCCPx\0\0", b"zTXtx\0\0", b"iTXtx\0\1\0\0\0"))
        chunks.insert(1, (text[:4], text[4:] + zlib.compress(bytes(1 << 26))))
    else:
        name = rng.choice((b"tRNS", b"gAMA", b"PLTE", b"acTL", b"fdAT", b"eXIf", b"IDAT", b"IEND"))
        chunks.insert(rng.randint(1, len(chunks)), (name, rng.randbytes(rng.randrange(40))))
    written = content[:8]
    for name, inner in chunks:
        checksum = zlib.crc32(name + inner)
        written += struct.pack(">I", len(inner)) + name + inner + struct.pack(">I", checksum)
    return written
