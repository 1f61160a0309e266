"""Hugging Face tokenizer files: the ids that transformers and open_clip read with them are ours."""

import base64
import gzip
import io
import json
import pathlib
import struct
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from cyclip_jax.data.tokenizers import (
    clean,
    create_tokenizer,
    read_sentencepiece,
    train_sentencepiece,
)
from cyclip_jax.errors import UserError
from cyclip_jax.interop.hf_tokenizer import (
    _check_model,
    _normalizers,
    read_charsmap,
    tokenizer_files,
)
from tests.pytorch import open_clip

CAPTIONS = [
    "a dog runs on the green grass",
    "two children playing under a blue sky",
    "the café by the river, at 10 o'clock",
    "blue cars on the road under the sky",
    "каждый охотник желает знать",
    "犬が公園で遊ぶ",
] * 5
LENGTH = 32
VOCAB_SIZE = 128

# The two marks of the normalization, and lone surrogates, are the documented exceptions.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufff0\ufff1"))
PIECES = [
    *("dog", " ", "The", "café", "CAFE\u0301", "ＤＯＧ", "охотник", "Ё", "Е\u0308", "А\u0301"),
    *("犬", "公園", "ガ", "か\u3099", "ｶﾞ", "한", "\u1112\u1161\u11ab", "ㅎㅏㄴ", "É", "E\u0301"),
    *("\u0301", "\u0323", "\u0308\u0301", "é\u0323", "ê\u0301", "q\u0307\u0323", "Ω\u0342\u0345"),
    *("İ", "I\u0307", "ß", "ſ", "ﬁ", "ﬁ\u0301", "½", "①", "™\ufe0f", "1\ufe0f\u20e3", "A\u20dd"),
    *(
        "👩‍👩‍👧",
        "🇩🇪",
        "👍🏽",
        "❤️",
        "▁",
        "\u2581a",
        "\t",
        "\r\n",
        "\u3000",
        "\u200b",
        "\u200d",
        "\x01",
    ),
    *("\0", "<pad>", "<unk>", "<s>", "<| pad |>", "<| endoftext |>", "<| startoftext |>"),
]
MIXTURES = st.lists(st.sampled_from(PIECES) | TEXT, max_size=12).map("".join)
BOUNDED = {"derandomize": True, "database": None, "deadline": None, "max_examples": 20}


def save(files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def load(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def padded_ids(hf_tokenizer, texts, length=LENGTH):
    encoded = hf_tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="np"
    )
    assert set(encoded) == {"input_ids", "attention_mask"}  # all that CLIPModel takes
    return encoded.input_ids


def sentencepiece_tokenizer(path, vocab_size=VOCAB_SIZE):
    return create_tokenizer(
        "sentencepiece", vocab_size=vocab_size, context_length=LENGTH, vocabulary=str(path)
    )


def train_plainly(path, vocab_size=110, **options):
    """A model by SentencePiece's own defaults: id 0 is the unknown, 1 and 2 are <s> and </s>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece_tokenizer(path, vocab_size + 18)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("pieces") / "tokenizer.model")
    return sentencepiece_tokenizer(
        train_sentencepiece(CAPTIONS, vocab_size=VOCAB_SIZE - 8, output=path)
    )


@pytest.fixture(scope="module")
def pieces_folder(pieces, tmp_path_factory):
    return save(tokenizer_files(pieces), tmp_path_factory.mktemp("pieces") / "hf")


@pytest.fixture(scope="module")
def pieces_hf(pieces_folder):
    return load(pieces_folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.txt.gz"
    merges = ["l o", "lo w</w>", "e r</w>", "a a", "n e", "w er</w>", "c a", "ca t</w>"]
    path.write_bytes(gzip.compress("\n".join(["#version: tiny", *merges, ""]).encode()))
    return create_tokenizer("clip_bpe", vocab_size=522, context_length=16, vocabulary=str(path))


@pytest.fixture(scope="module")
def tiny_folder(tiny, tmp_path_factory):
    return save(tokenizer_files(tiny), tmp_path_factory.mktemp("tiny") / "hf")


@pytest.fixture(scope="module")
def tiny_hf(tiny_folder):
    return load(tiny_folder)


def test_module_imports_no_other_framework():
    program = (
        "import sys, cyclip_jax.interop.hf_tokenizer; "
        "print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.stdout == "set()\n", finished.stderr


def test_other_tokenizers_are_refused():
    with pytest.raises(TypeError, match="is not a tokenizer of cyclip_jax"):
        tokenizer_files(str.split)


# SentencePiece


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n\t ",
        "The  green\tDog\n",
        "dog " * 500,
        "dog" * 500,
        "日本" * 500,
        "e\u0301\u0323" * 500,
        *PIECES,
    ],
)
def test_sentencepiece_ids_are_ours(pieces, pieces_hf, text):
    np.testing.assert_array_equal(padded_ids(pieces_hf, [text]), pieces([text]))


@settings(**BOUNDED)
@given(texts=st.lists(MIXTURES, min_size=30, max_size=60))
def test_sentencepiece_ids_are_ours_on_any_text(pieces, pieces_hf, texts):
    np.testing.assert_array_equal(padded_ids(pieces_hf, texts), pieces(texts))


@settings(**BOUNDED)
@given(texts=st.lists(MIXTURES, min_size=30, max_size=60))
def test_normalization_is_that_of_sentencepiece(pieces, pieces_hf, texts):
    # Sharper than the ids, in which all unknown characters are alike.
    normalize = pieces_hf.backend_tokenizer.normalizer.normalize_str
    sentencepiece_normalize = read_sentencepiece(pieces.vocabulary).normalize
    for text in texts:
        assert normalize(text) == sentencepiece_normalize(text).replace(" ", "▁")


def test_sequences_of_the_table_are_replaced_as_by_sentencepiece(pieces, pieces_hf):
    steps = json.loads(pieces_hf.backend_tokenizer.to_str())["normalizer"]["normalizers"]
    (encoded,) = (s["precompiled_charsmap"] for s in steps if s["type"] == "Precompiled")
    charsmap = read_charsmap(base64.b64decode(encoded))
    assert charsmap["Ａ"] == "a" and charsmap["E\u0301"] == "é" and charsmap["\x01"] == ""
    normalize = pieces_hf.backend_tokenizer.normalizer.normalize_str
    sentencepiece_normalize = read_sentencepiece(pieces.vocabulary).normalize
    sequences = sorted(charsmap, key=lambda key: (len(key), key))
    for sequence in sequences[::61]:
        text = f"a{sequence}\u0301a"
        assert normalize(text) == sentencepiece_normalize(text).replace(" ", "▁")


@pytest.mark.parametrize("rule", ["nfkc", "identity"])
def test_other_rules_of_normalization_are_kept(tmp_path, rule):
    tokenizer = train_plainly(tmp_path / "plain.model", normalization_rule_name=rule)
    hf = load(save(tokenizer_files(tokenizer), tmp_path / "hf"))
    texts = ["The  CAFÉ", "CAFE\u0301", "ＤＯＧ▁", *PIECES, " ".join(PIECES)]
    np.testing.assert_array_equal(padded_ids(hf, texts), tokenizer(texts))


def test_model_of_other_special_pieces_pads_with_zero(tmp_path):
    tokenizer = train_plainly(tmp_path / "plain.model", add_dummy_prefix=False)
    hf = load(save(tokenizer_files(tokenizer), tmp_path / "hf"))
    assert hf.pad_token_id == hf.unk_token_id == 0
    texts = ["<s> the dog </s>", "<unk>", "Z", ""]
    np.testing.assert_array_equal(padded_ids(hf, texts), tokenizer(texts))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "bpe"}, "is not a unigram model"),
        ({"byte_fallback": True, "vocab_size": 400}, "has pieces for bytes"),
        ({"user_defined_symbols": ["dog"]}, "has user-defined pieces"),
        ({"treat_whitespace_as_suffix": True}, "puts spaces behind words"),
        ({"remove_extra_whitespaces": False}, "keeps repeated spaces"),
    ],
)
def test_model_that_the_files_cannot_express_is_refused(tmp_path, options, reason):
    tokenizer = train_plainly(tmp_path / "plain.model", **options)
    with pytest.raises(UserError, match=rf"plain\.model cannot be exported .* {reason}; "):
        tokenizer_files(tokenizer)


def test_every_id_has_a_token_and_free_ones_are_never_used(pieces, pieces_hf):
    used = read_sentencepiece(pieces.vocabulary).get_piece_size()
    assert len(pieces_hf) == VOCAB_SIZE
    assert used < VOCAB_SIZE - 2
    tokens = pieces_hf.convert_ids_to_tokens(range(VOCAB_SIZE))
    assert len(set(tokens)) == VOCAB_SIZE
    ids = padded_ids(pieces_hf, [" ".join(tokens[i : i + 4]) for i in range(used, VOCAB_SIZE)])
    assert not np.isin(ids, np.arange(used, VOCAB_SIZE - 2)).any()


def test_special_tokens_have_our_ids(pieces, pieces_hf):
    assert (pieces_hf.bos_token_id, pieces_hf.eos_token_id) == (VOCAB_SIZE - 2, VOCAB_SIZE - 1)
    assert (pieces_hf.pad_token_id, pieces_hf.unk_token_id) == (0, 1)
    assert pieces_hf.model_max_length == LENGTH
    (row,) = pieces_hf(["dog"]).input_ids
    assert pieces_hf.decode(row, skip_special_tokens=True) == "dog"


def write_open_clip_config(folder, tokenizer):
    text = {
        "context_length": tokenizer.context_length,
        "vocab_size": tokenizer.vocab_size,
        "hf_tokenizer_name": "tokenizer",
    }
    with open(f"{folder}/open_clip_config.json", "w") as file:
        json.dump({"model_cfg": {"embed_dim": 8, "text_cfg": text}}, file)


@pytest.fixture(scope="module")
def pieces_open_clip(pieces, pieces_folder):
    write_open_clip_config(pieces_folder, pieces)
    return open_clip.get_tokenizer(f"local-dir:{pieces_folder}")


def test_open_clip_reads_plain_captions_as_we_do(pieces, pieces_open_clip):
    texts = [*CAPTIONS, "", " ", "The DOG\n\nruns", "dog " * 500, "<pad>", "犬" * 500]
    np.testing.assert_array_equal(pieces_open_clip(texts).numpy(), pieces(texts))


@settings(**BOUNDED)
@given(texts=st.lists(MIXTURES, min_size=10, max_size=20))
def test_open_clip_reads_the_text_it_cleaned_as_we_do(pieces, pieces_open_clip, texts):
    cleaned = [pieces_open_clip.clean_fn(text) for text in texts]
    np.testing.assert_array_equal(pieces_open_clip(texts).numpy(), pieces(cleaned))


# CLIP's byte-pair encoding


def up_to_end_of_text(rows, tokenizer):
    """Rows with zeros behind the first end-of-text: both paddings look the same."""
    ends = (rows == tokenizer.vocab_size - 1).argmax(axis=1)[:, None]
    return np.where(np.arange(rows.shape[1]) <= ends, rows, 0)


def is_cleaned_alike(text):
    """Whether what CLIPTokenizer does to a text is what CLIP does before the byte pairs."""
    alike = " ".join(unicodedata.normalize("NFC", text).split()).lower()
    return clean(text) == alike and not set(text.lower()) & set("ſςσ") and "<|" not in text


@pytest.mark.parametrize(
    "text",
    ["", " \n", "low", "A lower Cat's 12 cats?!", "cat " * 500, "don't they'll", "日本 😀", "▁ é"],
)
def test_clip_ids_are_ours(tiny, tiny_hf, text):
    rows = padded_ids(tiny_hf, [text], tiny.context_length)
    np.testing.assert_array_equal(up_to_end_of_text(rows, tiny), tiny([text]))


# Not control characters, which CLIP drops, nor letters that Unicode is yet to have.
VISIBLE = st.text(st.characters(exclude_categories=["C"]), max_size=3)
WORDS = st.sampled_from(
    [
        *"lowercat?!.,'5-",
        " ",
        "low",
        "Lower",
        "cat's",
        "LL'RE",
        "日本",
        "É",
        "E\u0301",
        "😀",
        "👍🏽",
    ]
)


@settings(**BOUNDED)
@given(texts=st.lists(st.lists(WORDS | VISIBLE).map("".join), min_size=20, max_size=40))
def test_clip_ids_are_ours_where_nothing_is_mended(tiny, tiny_hf, texts):
    texts = ["a cat", *filter(is_cleaned_alike, texts)]
    rows = padded_ids(tiny_hf, texts, tiny.context_length)
    np.testing.assert_array_equal(up_to_end_of_text(rows, tiny), tiny(texts))


def test_clip_pads_with_end_of_text(tiny, tiny_hf):
    assert type(tiny_hf).__name__ == "CLIPTokenizer"
    assert (tiny_hf.bos_token, tiny_hf.bos_token_id) == ("<|startoftext|>", 520)
    assert (tiny_hf.eos_token, tiny_hf.eos_token_id) == ("<|endoftext|>", 521)
    assert padded_ids(tiny_hf, ["low"], 5).tolist() == [[520, 513, 521, 521, 521]]
    assert tiny_hf.model_max_length == 16
    assert len(tiny_hf) == 522


def test_clip_folder_has_what_transformers_4_reads(tiny, tiny_folder):
    from transformers import CLIPTokenizer

    with open(f"{tiny_folder}/vocab.json", encoding="utf-8") as file:
        vocabulary = json.load(file)
    with open(f"{tiny_folder}/merges.txt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().splitlines()[1:]]
    assert sorted(vocabulary.values()) == list(range(522))
    slow = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)
    texts = ["a lower cat", "low " * 100, "日本"]
    rows = padded_ids(slow, texts, tiny.context_length)
    np.testing.assert_array_equal(up_to_end_of_text(rows, tiny), tiny(texts))


def test_tokenizer_json_alone_is_clip_tokenizer(tiny, tiny_folder):
    from transformers import PreTrainedTokenizerFast

    alone = PreTrainedTokenizerFast(
        tokenizer_file=f"{tiny_folder}/tokenizer.json", pad_token="<|endoftext|>"
    )
    texts = ["a lower cat's tail", "LOW É", "low " * 100]
    rows = np.array(alone(texts, padding="max_length", truncation=True, max_length=16)["input_ids"])
    np.testing.assert_array_equal(up_to_end_of_text(rows, tiny), tiny(texts))


def test_clip_vocabulary_has_the_ids_of_clip(tmp_path):
    clip = create_tokenizer("clip_bpe", vocab_size=49408, context_length=77)
    hf = load(save(tokenizer_files(clip), tmp_path))
    assert hf("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(hf) == 49408
    texts = ["A photo of 2 Cats, isn't it?", "übergrößenträger 日本語 😀", "a cat " * 100]
    rows = padded_ids(hf, texts, 77)
    np.testing.assert_array_equal(up_to_end_of_text(rows, clip), clip(texts))


@pytest.mark.parametrize("name", ["tiny", "pieces"])
def test_processor_of_transformers_loads_a_model_folder(name, request, tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPProcessor

    tokenizer = request.getfixturevalue(name)
    folder = save(tokenizer_files(tokenizer), tmp_path / "hf")
    CLIPImageProcessor().save_pretrained(folder)
    CLIPConfig().save_pretrained(folder)
    length = tokenizer.context_length
    read = CLIPProcessor.from_pretrained(folder)(
        text=["cat", "dog " * 100], padding=True, truncation=True, return_tensors="np"
    )
    rows = up_to_end_of_text(read["input_ids"], tokenizer)
    np.testing.assert_array_equal(rows, tokenizer(["cat", "dog " * 100]))
    assert rows.shape == (2, length)


@pytest.mark.parametrize("kind", ["cut", "changed", "circle"])
def test_damaged_rules_of_normalization_are_refused(tmp_path, pieces, kind):
    proto = sentencepiece_model_pb2.ModelProto.FromString(
        pathlib.Path(pieces.vocabulary).read_bytes()
    )
    table = bytearray(proto.normalizer_spec.precompiled_charsmap)
    size = int.from_bytes(table[:4], "little")
    if kind == "cut":
        table = table[: size // 2]
    elif kind == "changed":
        table[4 + size :] = b"\xff" * (len(table) - 4 - size)
    else:
        table[:] = struct.pack("<3I", 8, 0, 1 << 10 | 1)
    proto.normalizer_spec.precompiled_charsmap = bytes(table)
    with pytest.raises(UserError, match="rules of normalization in the SentencePiece model are"):
        _normalizers(proto.normalizer_spec)


def test_a_model_without_its_unknown_piece_is_refused(tmp_path, pieces):
    proto = sentencepiece_model_pb2.ModelProto.FromString(
        pathlib.Path(pieces.vocabulary).read_bytes()
    )
    proto.trainer_spec.unk_id = len(proto.pieces)
    with pytest.raises(UserError, match="names an unknown piece that it lacks"):
        _check_model(proto, pieces.vocabulary)
