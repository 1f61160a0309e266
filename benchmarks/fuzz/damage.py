"""What damages an input: bits, lengths, numbers, texts, and the values of JSON."""

import json
import math
import random
import re
from typing import Any, NamedTuple

KEPT = 24  # bytes: no damage of this length can make one example's mark another's
NUMBERS = (0, 1, -1, 127, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
DIGITS = (*map(str, NUMBERS), "-0.0", "1e999", "NaN", "Infinity", "0x10", "1_0", "٣", "1e-400")
TEXTS = (
    *("", " ", "\0", '"', '""', "'", "\\", "\n", "\r", "\r\n", "\t", ",", ";", "{}", "{c}", "%s"),
    *("{0..9}", "{", "[a]", "*", "?", "~", ".", "..", "/", "//", "../x", "file://x", "data:,x"),
    *("\u2028", "\ufeff", "\ud83d", "\u202e", "é", "\x1b[31m", "▁", "<|endoftext|>", "&#x0;"),
    *("None", "null", "nan", "-1", "1e999", "x" * 300, "Ω" * 5_000, "&#" + "9" * 5_000 + ";"),
)
# What a JSON writer does not write, put in place of a text afterwards.
_RAW = {"@deep@": "[" * 60_000 + "]" * 60_000, "@digits@": "9" * 5_000, "@large@": "1e999"}
VALUES = (None, True, False, 0.5, math.nan, [], {}, [[]], [None], {"a": {}}, *NUMBERS)


class Case(NamedTuple):
    """An input and how it is read.

    Attributes:
      files: {relative path: content}.
      reader: name of what reads it (see readers.py), and its arguments.
      is_paired: whether a reader can tell which caption belongs to which picture.
    """

    files: dict[str, bytes]
    reader: tuple[str, dict[str, Any]]
    is_paired: bool = True


def damaged(rng: random.Random, content: bytes) -> tuple[bytes, bool]:
    """(the bytes after one to three kinds of damage, whether marks still tell what belongs)."""
    is_paired = True
    for _ in range(rng.choice((1, 1, 2, 3))):
        damage = rng.choice(_DAMAGES)
        length = rng.choice((1, 4, 8, KEPT, KEPT, rng.randint(1, max(len(content), 2))))
        is_paired &= length <= KEPT or damage not in (_remove, _copy)
        content = damage(rng, content, length)
    return content, is_paired


def _flip(rng, content, length):
    changed = bytearray(content)
    for _ in range(min(length, 8) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng, content, length):
    return content[: rng.randint(0, len(content))]


def _remove(rng, content, length):
    start = rng.randint(0, len(content))
    return content[:start] + content[start + length :]


def _copy(rng, content, length):
    source, target = (rng.randint(0, len(content)) for _ in range(2))
    part = content[source : source + length]
    return content[:target] + part + content[target + rng.choice((0, len(part))) :]


def _insert(rng, content, length):
    target = rng.randint(0, len(content))
    return content[:target] + encoded(rng.choice(TEXTS)) + content[target:]


def _number(rng, content, length):
    """A whole number of 1 to 8 bytes overwritten by another one."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    written = (rng.choice(NUMBERS) % 256**size).to_bytes(size, order)
    target = rng.randint(0, max(len(content) - size, 0))
    return content[:target] + written + content[target + size :]


def _digits(rng, content, length):
    spans = [match.span() for match in re.finditer(rb"-?\d+(\.\d+)?", content)] or [(0, 0)]
    start, end = rng.choice(spans)
    return content[:start] + rng.choice(DIGITS).encode() + content[end:]


def _joined(rng, content, length):
    return content + content


_DAMAGES = (_flip, _flip, _cut, _remove, _copy, _insert, _number, _digits, _joined)


def encoded(text: str) -> bytes:
    """UTF-8 that may hold half a character."""
    return text.encode("utf-8", "surrogatepass")


def as_json(tree: Any) -> bytes:
    """JSON, in which some texts become what no tree can hold."""
    text = json.dumps(tree)
    for told, written in _RAW.items():
        text = text.replace(f'"{told}"', written)
    return text.encode()


def changed_tree(rng: random.Random, tree: Any) -> tuple[Any, bool]:
    """(what JSON holds with one or two of its values changed, whether marks still tell)."""
    tree, is_paired = json.loads(json.dumps(tree)), True
    for _ in range(rng.choice((1, 1, 2))):
        places = [(box, key) for box in _boxes(tree) for key in _keys(box)]
        if not places:
            return rng.choice(VALUES), is_paired
        box, key = rng.choice(places)
        kind = rng.choice(("value", "value", "text", "remove", "copy"))
        if kind == "remove":
            del box[key]
        elif kind == "copy":
            other, name = rng.choice(places)
            box[key], is_paired = json.loads(json.dumps(other[name])), False
        else:
            box[key] = rng.choice((*VALUES, *_RAW) if kind == "value" else TEXTS)
    return tree, is_paired


def _boxes(tree):
    if isinstance(tree, dict | list):
        yield tree
        for key in _keys(tree):
            yield from _boxes(tree[key])


def _keys(box):
    return list(box) if isinstance(box, dict) else list(range(len(box)))


def changed_file(
    rng: random.Random, files: dict[str, bytes], name: str
) -> tuple[dict[str, bytes], bool]:
    """(files of which one is damaged, as JSON or as bytes, whether marks still tell)."""
    content, is_paired = damaged(rng, files[name])
    if name.endswith((".json", ".jsonl", "metadata", "_METADATA")) and rng.random() < 0.8:
        lines = files[name].split(b"\n") if name.endswith(".jsonl") else [files[name]]
        number = rng.choice([n for n, line in enumerate(lines) if line])
        tree, is_paired = changed_tree(rng, json.loads(lines[number]))
        content = b"\n".join([*lines[:number], as_json(tree), *lines[number + 1 :]])
    return files | {name: content}, is_paired
