"""Which parameters train, and trees that are parted by that."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import optax

from cyclip_jax.errors import UserError
from cyclip_jax.parallel import Tree

Path = tuple[Any, ...]  # of a parameter, e.g. ("visual", "stages", 0, 1, "conv1", "kernel")
Trainable = Callable[[Path], bool]

_SETTING = "config.optimizer.freeze"


def name_of(path: Path) -> str:
    """The name that patterns are compared with, e.g. "visual/conv1/kernel"."""
    return "/".join(map(str, path))


def paths_of(tree: Tree) -> list[Path]:
    """The paths of a nested dict's leaves, in JAX's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [tuple(part.key for part in path) for path, _ in leaves]


def check_patterns(patterns: Sequence[str]) -> None:
    """Raises UserError where a pattern is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{_SETTING} has {pattern!r}, which is no regular expression ({error}); write one "
                "such as 'visual/.*'"
            ) from error


def trainable_by(patterns: Sequence[str]) -> Trainable | None:
    """Function from a path to whether it trains, or None where nothing is frozen.

    Args:
      patterns: regular expressions. A parameter is frozen whose whole name one of them matches.
    """
    if not patterns:
        return None
    found = [re.compile(pattern) for pattern in patterns]
    return lambda path: not any(pattern.fullmatch(name_of(path)) for pattern in found)


def both(first: Trainable | None, second: Trainable | None) -> Trainable | None:
    """Whether a path trains by both; None trains everything."""
    if first is None or second is None:
        return first or second
    return lambda path: first(path) and second(path)


def check_freeze(patterns: Sequence[str], params: Tree, among: Trainable | None = None) -> None:
    """Raises UserError where a pattern matches no parameter, or nothing is left to train.

    Args:
      patterns: as in `trainable_by`.
      params: the model's parameters, a nested dict of arrays or shapes.
      among: the parameters that the run would train without `patterns`; None is all.
    """
    paths = paths_of(params)
    names = [name_of(path) for path in paths]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            near = _nearest(pattern, names)
            raise UserError(
                f"{_SETTING} has {pattern!r}, which is the whole name of no parameter; the nearest "
                f"are {', '.join(near)}"
            )
    trains = both(among, trainable_by(patterns))
    if trains is not None and not any(map(trains, paths)):
        where = "" if among is None else " in the steps on sentences alone"
        raise UserError(
            f"{_SETTING} leaves nothing to train{where}; leave out some of its patterns"
        )


def _nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """What a pattern may have meant: patterns of whole modules, and parameters."""
    modules = dict.fromkeys(
        "/".join(name.split("/")[:depth]) + "/.*"
        for name in names
        for depth in (1, 2)
        if "/" in name
    )
    return difflib.get_close_matches(pattern, [*modules, *names], n=3, cutoff=0)


def of_statistics(trainable: Trainable) -> Trainable:
    """Whether the statistics at a path move: where a parameter of the same BatchNorm trains."""
    return lambda path: any(trainable((*path[:-1], name)) for name in ("scale", "bias"))


def frozen_towers(patterns: Sequence[str], params: Tree) -> set[str]:
    """Which of the model's parts, such as "visual", no parameter of trains."""
    trainable = trainable_by(patterns)
    paths = paths_of(params)
    trained = {path[0] for path in paths if trainable is None or trainable(path)}
    return {path[0] for path in paths} - trained


def frozen_out(
    optimizer: optax.GradientTransformation, patterns: Sequence[str]
) -> optax.GradientTransformation:
    """The transformation of the parameters that train alone: of others its state has no leaf."""
    trainable = trainable_by(patterns)
    if trainable is None:
        return optimizer

    def mask(params):
        trains = list(map(trainable, paths_of(params)))
        return jax.tree.unflatten(jax.tree.structure(params), trains)

    return optax.masked(optimizer, mask)


def where_trainable(trainable: Trainable, trained: Tree, others: Tree) -> Tree:
    """A tree with the leaves of `trained` at paths that train, and those of `others` elsewhere."""
    return jax.tree_util.tree_map_with_path(
        lambda path, new, old: new if trainable(tuple(key.key for key in path)) else old,
        trained,
        others,
    )


def parted(trainable: Trainable | None, tree: Tree) -> tuple[Tree, Tree]:
    """A nested dict as two, with None for the other's leaves: what trains, and the rest."""
    leaves, structure = jax.tree.flatten(tree)
    trains = [trainable is None or trainable(path) for path in paths_of(tree)]
    first = [leaf if own else None for leaf, own in zip(leaves, trains, strict=True)]
    second = [None if own else leaf for leaf, own in zip(leaves, trains, strict=True)]
    return jax.tree.unflatten(structure, first), jax.tree.unflatten(structure, second)


def joined(first: Tree, second: Tree) -> Tree:
    """The tree whose `parted` these are."""
    return jax.tree.map(
        lambda one, other: other if one is None else one, first, second, is_leaf=lambda x: x is None
    )
