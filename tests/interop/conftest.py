"""Fixtures of several files here."""

import pytest

from cyclip_jax.data.tokenizers import train_sentencepiece
from cyclip_jax.interop import formats
from cyclip_jax.interop.pretrained import completed
from tests.hub import hub
from tests.interop.models import VIT, drawn_checkpoint

__all__ = ["hub"]

_TOKENIZERS = {}


@pytest.fixture
def tokenizer_written_once(monkeypatch):
    """Exports write the tokenizer of others as it was made for the first: that takes a second."""
    made, make = _TOKENIZERS, formats.tokenizer_files

    def files(tokenizer):
        if tokenizer.vocabulary_sum not in made:
            made[tokenizer.vocabulary_sum] = make(tokenizer)
        return made[tokenizer.vocabulary_sum]

    monkeypatch.setattr(formats, "tokenizer_files", files)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """A completed Checkpoint of a small ViT with a vocabulary of its own."""
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    captions = ["a red square", "two blue rings", "a grey cross", "the green bar"] * 3
    train_sentencepiece(captions, vocab_size=40, output=str(vocabulary))
    told = {"tokenizer": "sentencepiece", "vocabulary": str(vocabulary), "keep_end_of_text": True}
    return completed(drawn_checkpoint(VIT, told))
