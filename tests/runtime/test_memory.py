"""What nobody uses is freed, and glibc is told to keep few heaps."""

import ctypes
import gc
import os
import weakref

import pytest

from cyclip_jax.runtime import memory


class Node:
    """Refers to itself, as the graph of an input pipeline does."""

    def __init__(self):
        self.itself = self


def test_what_refers_to_itself_is_freed():
    gc.disable()
    try:
        freed = weakref.ref(Node())
        assert freed() is not None
        memory.give_back_memory()
        assert freed() is None
    finally:
        gc.enable()


@pytest.fixture
def told(monkeypatch):
    """What the C library was told, by name."""
    told = []

    class Library:
        def __init__(self, _):
            pass

        def mallopt(self, *arguments):
            told.append(arguments)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    return told


def test_there_is_a_heap_for_each_core_unless_the_environment_says_otherwise(told, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    memory.limit_arenas()
    assert told == [(-8, 96)]
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    memory.limit_arenas()
    assert len(told) == 1


def test_a_library_without_these_is_left_alone(told, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    memory.limit_arenas()
    memory.give_back_memory()
