"""Fixtures of several files here."""

import pytest

from cyclip_jax.data.tokenizers import train_sentencepiece
from cyclip_jax.interop.pretrained import completed
from tests.hub import hub
from tests.interop.models import VIT, drawn_checkpoint, write_tokenizers_once

__all__ = ["hub"]


@pytest.fixture
def tokenizer_written_once(monkeypatch):
    """Lets exports write the tokenizer of others as it was made for the first."""
    write_tokenizers_once(monkeypatch)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """A completed Checkpoint of a small ViT with a vocabulary of its own."""
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    captions = ["a red square", "two blue rings", "a grey cross", "the green bar"] * 3
    train_sentencepiece(captions, vocab_size=40, output=str(vocabulary))
    told = {"tokenizer": "sentencepiece", "vocabulary": str(vocabulary), "keep_end_of_text": True}
    return completed(drawn_checkpoint(VIT, told))
