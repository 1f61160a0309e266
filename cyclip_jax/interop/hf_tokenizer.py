"""Our tokenizers as the files of a Hugging Face tokenizer.

`AutoTokenizer`, `CLIPProcessor` and open_clip's `HFTokenizer` load a folder with these files. Of a
text too long for the context they drop, as we do, the ids that do not fit before end-of-text; for a
tokenizer with keep_end_of_text=False too, as these files cannot say otherwise.

**SentencePiece** becomes a unigram model with padding 0, which gives the ids of our tokenizer on
every text, the names of its special tokens included, but for:

- lone surrogates: Hugging Face's tokenizers raise an error, ours reads "?";
- U+FFF0 and U+FFF1, which no text has: they are used as marks, and dropped;
- two segmentations with the same score up to rounding, as of "aaa" into "a aa" and "aa a":
  SentencePiece adds in single precision, Hugging Face in double, and each takes what it finds
  larger;
- `split_special_tokens=False`, or another program than transformers: the special tokens' names are
  then read as special tokens. They have spaces inside, so that nobody types them;
- open_clip's HFTokenizer, which before anything else mends Unicode (ftfy), replaces HTML entities
  and joins words by single spaces. The ids are ours of the text so cleaned.

**clip_bpe** becomes the `CLIPTokenizer` of OpenAI's own Hugging Face repositories: padding is
end-of-text and the special tokens are called <|startoftext|> and <|endoftext|>. CLIPModel pools at
the first end-of-text, so the model gives the same embeddings. That class differs from CLIP's own
tokenizer, open_clip's and ours in what it does before the byte pairs, and no file can mend it:

- it composes characters (NFC) where ours also mends Unicode (ftfy: mojibake, curly quotes,
  ligatures, full-width letters, control characters) and replaces HTML entities;
- a final Σ becomes σ, not ς; ſ does not end a contraction ("'ſ");
- the names of the special tokens are <|startoftext|> and <|endoftext|>, not <start_of_text> and
  <end_of_text>, where they stand in a text;
- letters and numbers are those of another version of Unicode.

open_clip needs no files for CLIP's vocabulary: its default tokenizer is exactly ours.
"""

import base64
import collections
import itertools
import json
import re
import struct
from unicodedata import ucd_3_2_0 as unicode_3_2

from sentencepiece import sentencepiece_model_pb2

from cyclip_jax.data.tokenizers import (
    ClipBpeTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    clip_byte_characters,
    read_clip_merges,
    read_sentencepiece,
)
from cyclip_jax.errors import UserError

# Of no use in Unicode: they end a grapheme, compose with nothing, and no text has them.
APART, SEPARATE = "\ufff0", "\ufff1"
SPACE = "▁"  # SentencePiece's visible space

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer with the ids of ours (see the top of this file).

    Args:
      tokenizer: a ClipBpeTokenizer or a SentencePieceTokenizer.

    Returns:
      {file name: bytes}: tokenizer.json and tokenizer_config.json; for clip_bpe also vocab.json and
      merges.txt, which transformers below 5 reads.

    Raises:
      UserError: a SentencePiece model of a kind that these files cannot express.
    """
    if isinstance(tokenizer, ClipBpeTokenizer):
        return _clip_files(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece_files(tokenizer)
    raise TypeError(f"no tokenizer of cyclip_jax: {tokenizer!r}")


def _as_json(content):
    return (json.dumps(content, indent=1) + "\n").encode()


def _tokenizer_json(**parts):
    """The parts of a tokenizer.json; whoever calls the tokenizer says how to cut and to pad."""
    return _as_json({"version": "1.0", "truncation": None, "padding": None} | parts)


def _added_token(token_id, content):
    matching = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **matching, "special": True}


def _replace(pattern, content):
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


# CLIP's byte-pair encoding


def _clip_files(tokenizer):
    units = list(clip_byte_characters().values())
    units += [unit + "</w>" for unit in units]
    merges = []
    for left, right in read_clip_merges(tokenizer.vocabulary):
        merges.append(f"{units[left]} {units[right]}")
        units.append(units[left] + units[right])
    vocabulary = {unit: i for i, unit in enumerate([*units, CLIP_START, CLIP_END])}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": CLIP_END,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "</w>",
        "fuse_unk": False,
        "vocab": vocabulary,
        "merges": merges,
    }
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.context_length,
        "bos_token": CLIP_START,
        "eos_token": CLIP_END,
        "pad_token": CLIP_END,
        "unk_token": CLIP_END,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    return {
        "tokenizer.json": _tokenizer_json(
            added_tokens=[_added_token(vocabulary[name], name) for name in (CLIP_START, CLIP_END)],
            **_clip_pipeline(vocabulary),
            model=model,
        ),
        "tokenizer_config.json": _as_json(config),
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
    }


def _clip_pipeline(vocabulary):
    """What CLIPTokenizer does around the byte pairs; version 5 of transformers does it in code."""
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False}
    bytes_alone |= {"trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": CLIP_SPLIT}}
    split |= {"behavior": "Removed", "invert": True}
    steps = [{"type": "NFC"}, _replace(r"\s+", " "), {"type": "Lowercase"}]
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_alone]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [CLIP_END, vocabulary[CLIP_END]],
            "cls": [CLIP_START, vocabulary[CLIP_START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": bytes_alone,
    }


# SentencePiece


def _sentencepiece_files(tokenizer):
    # Protobuf makes the module's classes when it is imported.
    model_proto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
    proto = model_proto.FromString(
        read_sentencepiece(tokenizer.vocabulary).serialized_model_proto()
    )
    _check_model(proto, tokenizer.vocabulary)
    vocabulary = _unigram_vocabulary(proto, tokenizer.vocab_size)
    names = [name for name, _ in vocabulary]
    unknown, start, end = proto.trainer_spec.unk_id, len(names) - 2, len(names) - 1
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context_length,
        "padding_side": "right",
        "truncation_side": "right",
        "bos_token": names[start],
        "eos_token": names[end],
        "pad_token": names[0],
        "unk_token": names[unknown],
        "split_special_tokens": True,  # their names in a text are text
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {
        "tokenizer.json": _tokenizer_json(
            added_tokens=[_added_token(i, names[i]) for i in sorted({0, unknown, start, end})],
            normalizer={"type": "Sequence", "normalizers": _normalizers(proto.normalizer_spec)},
            pre_tokenizer=None,  # pieces are sought in the whole text, as SentencePiece does
            post_processor=_between(start, end, names),
            decoder=_metaspace(),
            model={"type": "Unigram", "unk_id": unknown, "vocab": vocabulary},
        ),
        "tokenizer_config.json": _as_json(config),
    }


def _metaspace():
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False}


def _between(start, end, names):
    """Start-of-text, the text, end-of-text; and a pair of texts one after the other."""

    def special(token_id, type_id=0):
        return {"SpecialToken": {"id": names[token_id], "type_id": type_id}}

    def text(which, type_id=0):
        return {"Sequence": {"id": which, "type_id": type_id}}

    single = [special(start), text("A"), special(end)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, special(start, 1), text("B", 1), special(end, 1)],
        "special_tokens": {
            names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in (start, end)
        },
    }


def _check_model(proto, path):
    """Refuses what has no counterpart; nothing of it is in a model of `train_sentencepiece`."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = {piece.type for piece in proto.pieces}
    known_rules = {"nmt_nfkc_cf", "nmt_nfkc", "nfkc_cf", "nfkc", "identity"}
    obstacles = {
        "is no unigram model": trainer.model_type != trainer.UNIGRAM,
        "has pieces for bytes": proto.SentencePiece.BYTE in kinds,
        "has user-defined pieces": proto.SentencePiece.USER_DEFINED in kinds,
        "puts spaces behind words": trainer.treat_whitespace_as_suffix,
        "keeps repeated spaces": not normalizer.remove_extra_whitespaces,
        "has no visible spaces": not normalizer.escape_whitespaces,
        "normalizes by rules of its own": normalizer.name not in known_rules,
    }
    found = [obstacle for obstacle, is_there in obstacles.items() if is_there]
    if found:
        raise UserError(
            f"{path} cannot be exported to a Hugging Face tokenizer because it "
            f"{' and '.join(found)}; export the model without its tokenizer, or train with a "
            "vocabulary of `python -m cyclip_jax.data.tokenizers`"
        )


def _unigram_vocabulary(proto, vocab_size):
    """[name, score] of every id.

    A text may be matched by a normal piece alone. The others get a name with a space, which after
    normalization no text has, and a score above that of all the pieces: the lowest score decides
    that of an unknown character.
    """
    normal = proto.SentencePiece.NORMAL
    vocabulary = [
        [piece.piece, piece.score] if piece.type == normal else [_unreachable(piece.piece), 0.0]
        for piece in proto.pieces
    ]
    free = range(len(vocabulary), vocab_size - 2)
    names = [*(f"unused {i}" for i in free), "startoftext", "endoftext"]
    return vocabulary + [[_unreachable(name), 0.0] for name in names]


def _unreachable(name):
    return f"<| {name.strip('<>')} |>"


# SentencePiece's normalization
#
# It goes through the text from left to right, and replaces the longest sequence of characters that
# its table, the charsmap, has. Hugging Face's `Precompiled` reads the same table but looks up
# grapheme clusters: of "E" with a combining accent it finds "E", and the accent is lost. It is
# right on single characters. So these steps do what the table does:
#
# 1. sequences that composition (NFC) would not make into what the table says are replaced;
# 2. APART is put before every combining character that belongs to no sequence of the table;
# 3. SEPARATE is put between characters, `Precompiled` replaces each, SEPARATE is taken out;
# 4. NFC composes the sequences, and nothing else, as APART is between; APART is taken out;
# 5. spaces at both ends and repeated ones go, the others become visible.


def _normalizers(spec):
    steps = []
    if spec.precompiled_charsmap:
        charsmap = read_charsmap(spec.precompiled_charsmap)
        encoded = base64.b64encode(spec.precompiled_charsmap).decode()
        steps += [
            *_irregular_sequences(charsmap),
            _replace(_outside_sequences(charsmap), APART),
            # Not at the start of a text: tokenizers 0.23 panics at what is put there.
            _replace(r"(?!\A)(?=\n|[^\x00-\x7f])", SEPARATE),
            {"type": "Precompiled", "precompiled_charsmap": encoded},
            _replace(SEPARATE, ""),
            {"type": "NFC"},
            _replace(APART, ""),
        ]
    steps += [_replace("  +", " "), _replace(r"\A ", ""), _replace(" ", SPACE)]
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return [*steps, _replace(rf"{SPACE}+\z", "")]


def read_charsmap(blob: bytes) -> dict[str, str]:
    """SentencePiece's table of normalization, {sequence of characters: replacement}, both str.

    Args:
      blob: the normalizer's `precompiled_charsmap`: the size of a trie in bytes, the trie as a
        double array of 32-bit units, and the replacements in UTF-8, each ended by a zero. (See
        darts-clone's darts.h for the bits of a unit.)
    """
    (size,) = struct.unpack_from("<I", blob)
    units = struct.unpack_from(f"<{size // 4}I", blob, 4)
    replacements = blob[4 + size :]
    children = collections.defaultdict(list)  # by where the children of a node start
    for position, unit in enumerate(units):
        label = unit & 0x8000_00FF  # a unit with the highest bit holds a value
        if 0 < label < 256:
            children[position ^ label].append((label, position))
    charsmap = {}
    stack = [(b"", _first_child(units, 0))]
    while stack:
        prefix, start = stack.pop()
        for label, position in children[start]:
            key, below = prefix + bytes([label]), _first_child(units, position)
            if units[position] & 0x100:  # a key ends here
                value = units[below] & 0x7FFF_FFFF
                end = replacements.index(b"\0", value)
                charsmap[key.decode()] = replacements[value:end].decode()
            stack.append((key, below))
    return charsmap


def _first_child(units, position):
    unit = units[position]
    return position ^ ((unit >> 10) << ((unit & 0x200) >> 6))


def _is_composed(result, sequence, charsmap):
    """Whether steps 3 and 4 make the result of a sequence.

    Only characters of Unicode 3.2 are relied on, which every implementation of NFC knows.
    """
    characters = "".join(charsmap.get(c, c) for c in sequence)
    is_known = all(unicode_3_2.category(c) != "Cn" for c in characters + result)
    return is_known and unicode_3_2.normalize("NFC", characters) == result


def _irregular_sequences(charsmap):
    """Step 1: one replacement for each result, such as İ of I and a combining dot."""
    sequences = collections.defaultdict(list)
    for sequence, result in charsmap.items():
        if len(sequence) > 1 and not _is_composed(result, sequence, charsmap):
            sequences[result].append(sequence)
    longest_first = sorted(
        sequences, key=lambda result: (-max(map(len, sequences[result])), result)
    )
    return [_replace(_longest_of(sequences[result]), result) for result in longest_first]


def _outside_sequences(charsmap):
    """Step 2: the pattern of the places before combining characters, but not inside a sequence."""
    sequences = [key for key in charsmap if len(key) > 1]
    if not sequences:
        return r"(?!)"
    combining = set(itertools.chain.from_iterable(key[1:] for key in sequences))
    combining |= {  # and what is replaced by one, or by a text that begins with one
        char
        for char, result in charsmap.items()
        if len(char) == 1 and (result[:1] in combining or unicode_3_2.combining(result[:1] or "a"))
    }
    following = rf"[\p{{M}}{_ranges(combining)}]"
    unit = rf"(?>{_longest_of(sequences)}|(?m:.))"
    # From a character that begins a sequence for sure, or from the last place found (\G), by whole
    # sequences (atomic groups) to the next place; \K makes the place empty, where APART goes.
    return (
        rf"(?:\G|(?!{following}))(?=(?m:.){following}){unit}"
        rf"(?:(?={following}){unit})*?\K(?={following})"
    )


def _longest_of(sequences):
    """A regular expression for the longest of the sequences that begin at a place."""
    tails = collections.defaultdict(set)
    for sequence in sequences:
        if sequence:
            tails[sequence[0]].add(sequence[1:])
    firsts = collections.defaultdict(list)  # characters with the same continuations
    for char, continuations in tails.items():
        firsts[frozenset(continuations)].append(char)
    branches = [
        f"[{_ranges(chars)}]" + ("" if continuations == {""} else _longest_of(continuations))
        for continuations, chars in sorted(firsts.items(), key=lambda item: min(item[1]))
    ]
    return f"(?:{'|'.join(branches)})" + ("?" if "" in sequences else "")


def _ranges(chars):
    """The inside of a regular expression's character class."""
    points = sorted(map(ord, chars))
    runs = []
    for point in points:
        if runs and point == runs[-1][1] + 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return "".join(
        re.escape(chr(first)) + (f"-{re.escape(chr(last))}" if last > first else "")
        for first, last in runs
    )
