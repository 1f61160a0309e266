"""Writes our tokenizers as the files of a Hugging Face tokenizer.

`AutoTokenizer`, `CLIPProcessor` and open_clip's `HFTokenizer` load a folder with these files. If a
text is too long for the context, they drop, as we do, the ids that do not fit before end-of-text.
They do so even for a tokenizer with keep_end_of_text=False, because these files cannot express it.

**SentencePiece** becomes a unigram model with padding 0. It gives the ids of our tokenizer on every
text, even on one that has the names of special tokens in it. There are five exceptions:

- Hugging Face's tokenizers raise an error on lone surrogates; ours reads them as "?".
- U+FFF0 and U+FFF1 are used as marks and are dropped. No text has them.
- Two segmentations may have the same score up to rounding, such as "a aa" and "aa a" of "aaa".
  SentencePiece adds scores in single precision and Hugging Face in double, and each takes the one
  that it finds larger.
- With `split_special_tokens=False`, or in another program than transformers, the names of special
  tokens in a text are read as special tokens. They have spaces inside, so that nobody types them.
- open_clip's HFTokenizer first mends Unicode (ftfy), replaces HTML entities and joins words by
  single spaces. Its ids are those that ours gives for the cleaned text.

**clip_bpe** becomes the `CLIPTokenizer` of OpenAI's own Hugging Face repositories. Its padding is
end-of-text, and its special tokens are called <|startoftext|> and <|endoftext|>. CLIPModel pools at
the first end-of-text, so that the model gives the same embeddings. CLIP's own tokenizer,
open_clip's and ours agree; that class does other things before the byte pairs, and no file can
change them:

- It composes characters (NFC). Ours also mends Unicode (ftfy: mojibake, curly quotes, ligatures,
  full-width letters, control characters) and replaces HTML entities.
- A final Σ becomes σ, not ς, and ſ does not end a contraction ("'ſ").
- The names by which it knows special tokens in a text are <|startoftext|> and <|endoftext|>, not
  <start_of_text> and <end_of_text>.
- Its letters and numbers are those of another version of Unicode.

open_clip needs no files for CLIP's vocabulary, because its default tokenizer is exactly ours.
"""

import base64
import collections
import itertools
import json
import re
import struct
from unicodedata import ucd_3_2_0 as unicode_3_2

from sentencepiece import sentencepiece_model_pb2

from cyclip_jax.data.clip_bpe import clip_byte_characters, read_clip_merges
from cyclip_jax.data.tokenizers import (
    ClipBpeTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    read_sentencepiece,
)
from cyclip_jax.errors import UserError

# These two can serve as marks: they end a grapheme, compose with nothing, and no text has them.
APART, SEPARATE = "\ufff0", "\ufff1"
SPACE = "▁"  # SentencePiece's visible space

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Returns the files of a Hugging Face tokenizer that gives our ids (see the top of this file).

    Args:
      tokenizer: a ClipBpeTokenizer or a SentencePieceTokenizer.

    Returns:
      {file name: bytes} with tokenizer.json and tokenizer_config.json. For clip_bpe there are also
      vocab.json and merges.txt, which transformers reads in versions below 5.

    Raises:
      UserError: the SentencePiece model is of a kind that these files cannot express.
    """
    if isinstance(tokenizer, ClipBpeTokenizer):
        return _clip_files(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece_files(tokenizer)
    raise TypeError(f"{tokenizer!r} is not a tokenizer of cyclip_jax")


def _as_json(content):
    return (json.dumps(content, indent=1) + "\n").encode()


def _tokenizer_json(**parts):
    """Joins the parts of a tokenizer.json; who calls the tokenizer decides how to cut and pad."""
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
    """Describes what CLIPTokenizer does around the byte pairs, which transformers 5 has in code."""
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
    # pyright does not see the class, because protobuf makes it when the module is imported.
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
        "split_special_tokens": True,  # names of special tokens in a text are text
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {
        "tokenizer.json": _tokenizer_json(
            added_tokens=[_added_token(i, names[i]) for i in sorted({0, unknown, start, end})],
            normalizer={"type": "Sequence", "normalizers": _normalizers(proto.normalizer_spec)},
            pre_tokenizer=None,  # SentencePiece, too, looks for pieces in the whole text
            post_processor=_between(start, end, names),
            decoder={
                "type": "Metaspace",
                "replacement": SPACE,
                "prepend_scheme": "always",
                "split": False,
            },
            model={"type": "Unigram", "unk_id": unknown, "vocab": vocabulary},
        ),
        "tokenizer_config.json": _as_json(config),
    }


def _between(start, end, names):
    """Puts start-of-text before a text and end-of-text behind it; a pair is two such texts."""

    def text(which, type_id):
        first, last = ({"SpecialToken": {"id": names[i], "type_id": type_id}} for i in (start, end))
        return [first, {"Sequence": {"id": which, "type_id": type_id}}, last]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {
            names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in (start, end)
        },
    }


def _check_model(proto, path):
    """Raises UserError if a model has what a Hugging Face tokenizer cannot have.

    Models of `train_sentencepiece` never do.
    """
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = {piece.type for piece in proto.pieces}
    known_rules = {"nmt_nfkc_cf", "nmt_nfkc", "nfkc_cf", "nfkc", "identity"}
    obstacles = {
        "is not a unigram model": trainer.model_type != trainer.UNIGRAM,
        "has pieces for bytes": proto.SentencePiece.BYTE in kinds,
        "has user-defined pieces": proto.SentencePiece.USER_DEFINED in kinds,
        "puts spaces behind words": trainer.treat_whitespace_as_suffix,
        "keeps repeated spaces": not normalizer.remove_extra_whitespaces,
        "has no visible spaces": not normalizer.escape_whitespaces,
        "has its own rules of normalization": normalizer.name not in known_rules,
        "names an unknown piece that it lacks": not 0 <= trainer.unk_id < len(proto.pieces),
    }
    found = [obstacle for obstacle, is_there in obstacles.items() if is_there]
    if found:
        raise UserError(
            f"{path} cannot be exported to a Hugging Face tokenizer because it "
            f"{' and '.join(found)}; export the model without its tokenizer, or train it with a "
            "vocabulary of `python -m cyclip_jax.data.tokenizers`"
        )


def _unigram_vocabulary(proto, vocab_size):
    """Returns [name, score] of every id.

    Only normal pieces may match a text. All others get a name with a space, which no text has after
    normalization. Their score is above those of all pieces, because the lowest score decides that
    of an unknown character.
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
# SentencePiece goes through the text from left to right and replaces the longest sequence of
# characters that its table, the charsmap, has. Hugging Face's `Precompiled` reads the same table
# but looks up grapheme clusters: for "E" with a combining accent it finds "E", and the accent is
# lost. It is right on single characters. So these steps do what the table does:
#
# 1. Sequences for which composition (NFC) gives something else than the table are replaced.
# 2. APART is put before every combining character that belongs to no sequence of the table.
# 3. SEPARATE is put between characters, `Precompiled` replaces each, and SEPARATE is taken out.
# 4. NFC composes the sequences and, because APART is in between, nothing else. APART is taken out.
# 5. Spaces at both ends and repeated spaces are removed, and the others become visible.


def _normalizers(spec):
    steps = []
    if spec.precompiled_charsmap:
        try:
            charsmap = read_charsmap(spec.precompiled_charsmap)
        except (IndexError, ValueError, struct.error) as error:
            raise UserError(
                "the rules of normalization in the SentencePiece model are damaged "
                f"({error}); bring back the file that the model was trained with"
            ) from error
        encoded = base64.b64encode(spec.precompiled_charsmap).decode()
        steps += [
            *_irregular_sequences(charsmap),
            _replace(_outside_sequences(charsmap), APART),
            # Nothing may be put at the start of a text, because tokenizers 0.23 then panics.
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
    """Reads SentencePiece's table of normalization.

    Args:
      blob: the normalizer's `precompiled_charsmap`. It holds the size of a trie in bytes, the trie
        as a double array of 32-bit units, and the replacements in UTF-8, each ended by a zero.
        (darts-clone's darts.h explains the bits of a unit.)

    Returns:
      {sequence of characters: replacement}.

    Raises:
      IndexError, ValueError, struct.error: the table is damaged.
    """
    (size,) = struct.unpack_from("<I", blob)
    units = struct.unpack_from(f"<{size // 4}I", blob, 4)
    replacements = blob[4 + size :]
    children = collections.defaultdict(list)  # {where the children of a node start: children}
    for position, unit in enumerate(units):
        label = unit & 0x8000_00FF  # a unit with the highest bit holds a value
        if 0 < label < 256:
            children[position ^ label].append((label, position))
    charsmap = {}
    stack = [(b"", _first_child(units, 0))]
    met = 0
    while stack:
        prefix, start = stack.pop()
        met += 1
        if met > 10 * len(units):  # what several keys share is met for each of them
            raise ValueError("its table goes round in a circle")
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
    """Says whether steps 3 and 4 turn a sequence into the result.

    It relies only on characters of Unicode 3.2, which every implementation of NFC knows.
    """
    characters = "".join(charsmap.get(c, c) for c in sequence)
    is_known = all(unicode_3_2.category(c) != "Cn" for c in characters + result)
    return is_known and unicode_3_2.normalize("NFC", characters) == result


def _irregular_sequences(charsmap):
    """Makes step 1: one replacement for each result, such as İ from I and a combining dot."""
    sequences = collections.defaultdict(list)
    for sequence, result in charsmap.items():
        if len(sequence) > 1 and not _is_composed(result, sequence, charsmap):
            sequences[result].append(sequence)
    longest_first = sorted(
        sequences, key=lambda result: (-max(map(len, sequences[result])), result)
    )
    return [_replace(_longest_of(sequences[result]), result) for result in longest_first]


def _outside_sequences(charsmap):
    """Makes the pattern of step 2: places before combining characters but not inside a sequence."""
    sequences = [key for key in charsmap if len(key) > 1]
    if not sequences:
        return r"(?!)"
    combining = set(itertools.chain.from_iterable(key[1:] for key in sequences))
    combining |= {  # characters whose replacement begins with a combining character
        char
        for char, result in charsmap.items()
        if len(char) == 1 and (result[:1] in combining or unicode_3_2.combining(result[:1] or "a"))
    }
    following = rf"[\p{{M}}{_ranges(combining)}]"
    unit = rf"(?>{_longest_of(sequences)}|(?m:.))"
    # The search starts at a character that surely begins a sequence, or at the last place (\G). It
    # goes by whole sequences (atomic groups) to the next place. \K makes the match there empty.
    return (
        rf"(?:\G|(?!{following}))(?=(?m:.){following}){unit}"
        rf"(?:(?={following}){unit})*?\K(?={following})"
    )


def _longest_of(sequences):
    """Makes a regular expression for the longest of the sequences that begin at a place."""
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
    """Writes characters as the inside of a regular expression's character class."""
    ranks = enumerate(sorted(map(ord, chars)))
    result = ""
    # In a run of consecutive characters, the difference between point and rank stays the same.
    for _, run in itertools.groupby(ranks, lambda ranked: ranked[1] - ranked[0]):
        first, *rest = (re.escape(chr(point)) for _, point in run)
        result += f"{first}-{rest[-1]}" if rest else first
    return result
