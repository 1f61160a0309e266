"""CLIP's byte-pair encoding: its vocabulary's file, and how a word becomes token ids."""

import gzip
import itertools
import math
import os
import zlib
from collections.abc import Mapping, Sequence

import regex

from cyclip_jax.data.packages import installed_path
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, expanded, how_written

CLIP_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
CLIP_PACKAGES = ("open_clip", "clip")  # of open_clip_torch; of openai-clip and clip-anytorch
CLIP_MERGES = 48_894  # of the file's 262,144; 256 bytes twice + these + 2 make CLIP's 49,408 ids


# Byte pairs are merged within a word: a special token, the ending of an English contraction, a run
# of letters, one digit, or a run of other visible characters. Texts are in lower case already, but
# some characters, such as ſ, match only when case is ignored, and CLIP's ids depend on that.
CLIP_WORD: regex.Pattern[str] = regex.compile(
    r"<start_of_text>|<end_of_text>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def clip_byte_characters() -> dict[int, str]:
    """{byte: the character that stands for it in the vocabulary's file}, in the order of the ids.

    First the visible characters of Latin-1, which stand for themselves; then the other bytes, for
    which the characters from U+0100 on are visible substitutes.
    """
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def read_clip_merges(path: str | os.PathLike[str]) -> dict[tuple[int, int], int]:
    """The merges of a vocabulary's file, {(left id, right id): id of the two merged}.

    The file is gzip-compressed text: a header, then one merge a line, "left right", the most
    frequent first. The ids 0-255 are the bytes, 256-511 are the bytes that end a word, and each
    merge adds the next id. Lines beyond `CLIP_MERGES` are not used. A smaller file makes a smaller
    vocabulary.

    Raises:
      UserError: the file is missing or damaged, or a line does not merge two earlier tokens.
    """
    path = expanded(path)
    try:
        with (
            absolute(path, "the vocabulary").open("rb") as raw,
            gzip.open(raw, "rt", encoding="utf-8", newline="\n") as file,
        ):
            lines = file.read().rstrip().split("\n")[1 : 1 + CLIP_MERGES]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the vocabulary {path}{how_written(path)} ({error}); set "
            f"config.data.vocabulary to a {CLIP_VOCABULARY}"
        ) from error
    characters = list(clip_byte_characters().values())
    ids = {unit: i for i, unit in enumerate(characters + [c + "</w>" for c in characters])}
    merges = {}
    for number, line in enumerate(lines, start=2):
        pair = line.split()
        merged = "".join(pair)
        if len(pair) != 2 or not ids.keys() >= set(pair) or merged in ids:
            raise UserError(
                f"{path}, line {number}: '{line}' is not a new merge of two earlier tokens; "
                f"set config.data.vocabulary to an undamaged {CLIP_VOCABULARY}"
            )
        merges[ids[pair[0]], ids[pair[1]]] = ids[merged] = len(ids)
    return merges


def merge_pairs(ids: Sequence[int], merges: Mapping[tuple[int, int], int]) -> tuple[int, ...]:
    """The ids of one word after byte-pair merging.

    Args:
      ids: ids of the word's bytes, not empty.
      merges: {(left id, right id): merged id}; a more frequent pair has a smaller merged id, so
        that the smallest is the one to merge next.

    Returns:
      A tuple of ids, no two neighbours of which can be merged.
    """
    while len(ids) > 1:
        best = min(itertools.pairwise(ids), key=lambda pair: merges.get(pair, math.inf))
        if best not in merges:
            break
        ids = replace_pair(ids, best, merges[best])
    return tuple(ids)


def replace_pair(ids: Sequence[int], pair: tuple[int, int], merged: int) -> list[int]:
    """The ids with every occurrence of `pair`, found from left to right, replaced by `merged`."""
    replaced, right_is_merged = [], False
    for left, right in itertools.pairwise([*ids, None]):
        if right_is_merged:
            right_is_merged = False
        elif (left, right) == pair:
            replaced.append(merged)
            right_is_merged = True
        else:
            replaced.append(left)
    return replaced


def find_clip_vocabulary() -> str:
    """Path of CLIP's vocabulary in an installed package that ships it.

    The package is located but not imported, for that would import torch.

    Raises:
      UserError: no installed package has the file.
    """
    for package in CLIP_PACKAGES:
        if path := installed_path(package, CLIP_VOCABULARY):
            return str(path)
    raise UserError(
        f"no installed package has {CLIP_VOCABULARY}: set config.data.vocabulary to the file or "
        "`pip install --no-deps open_clip_torch`"
    )
