"""Paths of leaves: which leaf of a tree is which of the traced variables."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.tree_util import DictKey, KeyPath, SequenceKey, default_registry

from jaxslim.errors import InputError

Path = tuple[str, ...]

OPTIMIZER = "opt_state"  # the name under which Flax's training states and optimizers keep the state of an optimizer


class Place(NamedTuple):
    """Where a leaf of a tree stands: at the path of a traced leaf, in the tree itself or in a copy inside it."""

    number: int
    """Number of the traced leaf."""
    copy: Path
    """What stands in front of the traced leaf's path, such as `0/mu`; empty in the traced tree itself."""
    position: int | None
    """Position behind the traced leaf's path, where a copy holds a sequence of arrays for each leaf."""


class Paths:
    """The paths of the traced leaves, to be found again in other trees."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._numbers = {path: number for number, path in enumerate(self.paths)}
        self._shortened: defaultdict[Path, list[int]] = defaultdict(list)
        for number, path in enumerate(self.paths):
            if len(path) > 1:
                self._shortened[path[1:]].append(number)

    def find(self, path: Path) -> int | None:
        """Number of the leaf that has this path, with its leading collection (`params`) or without it, or None.

        Raises:
          InputError: the path lacks its collection, and leaves of several collections fit.
        """
        if path in self._numbers:
            return self._numbers[path]
        found = self._shortened.get(path, [])
        if len(found) > 1:
            raise self._ambiguous(path, found)
        return found[0] if found else None

    def renewed(self, outputs: Sequence[Path]) -> list[int | None]:
        """For each output of a mode, number of the leaf whose new value it is, or None.

        The leaf's whole path stands at the end of the output's, or without its collection if all of the collection
        stands there: `(y, new_state)`. Positions alone name no leaf.
        """
        found = self._without_collection(outputs)
        for place, path in enumerate(outputs):
            tails = (tail for tail in _named_tails(path) if tail in self._numbers)
            found[place] = next((self._numbers[tail] for tail in tails), found[place])
        return found

    def _without_collection(self, outputs: Sequence[Path]) -> list[int | None]:
        members: defaultdict[str, dict[Path, int]] = defaultdict(dict)
        for number, path in enumerate(self.paths):
            if len(path) > 1:
                members[path[0]][path[1:]] = number
        own = [{path[: -len(tail)] for tail in _named_tails(path)} for path in outputs]
        found: list[int | None] = [None] * len(outputs)
        for prefix in set().union(*own):
            tails = {path[len(prefix) :]: place for place, path in enumerate(outputs) if path[: len(prefix)] == prefix}
            alike = [numbers for numbers in members.values() if numbers.keys() == tails.keys()]
            if len(alike) == 1:
                for tail, place in tails.items():
                    found[place] = alike[0][tail]
        return found

    def places(self, tree: Any) -> list[tuple[Path, Any, Place | None]]:
        """Each leaf of `tree` with its path and its place among the traced leaves.

        A leaf has a place if its path is that of a traced leaf, alone or behind what marks a copy of the traced tree:
        an attribute (the `mu` of an optimizer's state), a position (of a tuple of trees), or a name directly behind a
        position in the plain dicts of an optimizer's state (`opt_state/0/mu`). Any other mapping key belongs to
        another network. A copy may lack its collection (`params`) if it holds all of it. One position may stand behind.

        Raises:
          InputError: a copy lacks the collection and some of its leaves, or leaves of several collections fit.
        """
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        names = [tuple(map(_name, keys)) for keys, _ in leaves]
        fits = [self._fit(keys, path) for (keys, _), path in zip(leaves, names, strict=True)]
        sure = defaultdict(set)
        for fit in fits:
            if fit and len(fit.numbers) == 1:
                sure[fit.copy].add(self._collection(fit.numbers[0]))
        held: defaultdict[tuple[Path, str], set[int]] = defaultdict(set)
        found: list[tuple[Path, Any, Place | None]] = []
        for (_, leaf), path, fit in zip(leaves, names, fits, strict=True):
            place = None
            if fit:
                numbers = fit.numbers
                if len(numbers) > 1:
                    numbers = [number for number in numbers if self._collection(number) in sure[fit.copy]]
                if len(numbers) != 1:
                    raise self._ambiguous(path, fit.numbers)
                if fit.shortened:
                    held[fit.copy, self._collection(numbers[0])].add(numbers[0])
                place = Place(numbers[0], fit.copy, fit.position)
            found.append((path, leaf, place))
        if held:
            self._check_whole(held, tree)
        return found

    def hollow(self, tree: Any) -> set[Path]:
        """Copies of the traced tree with an empty node at the path of a leaf."""
        fits = (self._fit(keys, tuple(map(_name, keys))) for keys in _empty_nodes(tree))
        return {fit.copy for fit in fits if fit and fit.copy}

    def _fit(self, keys: KeyPath, path: Path) -> "_Fit | None":
        """The longest end of a path at which traced leaves stand."""
        for start in _copies(keys, path):
            copy, tail = path[:start], path[start:]
            ends: list[tuple[Path, int | None]] = [(tail, None)]
            if copy and tail and _is_position(keys[-1]) and not _is_position(keys[start - 1]):
                ends.append((tail[:-1], int(tail[-1])))
            for end, position in ends:
                if end in self._numbers:
                    return _Fit([self._numbers[end]], copy, position, shortened=False)
                numbers = [one for one in self._shortened.get(end, ()) if copy[-1:] != self.paths[one][:1]]
                if numbers:
                    return _Fit(numbers, copy, position, shortened=True)
        return None

    def _collection(self, number: int) -> str:
        return self.paths[number][0] if self.paths[number] else ""

    def _check_whole(self, held: dict[tuple[Path, str], set[int]], tree: Any) -> None:
        """Refuse copies of a part of a collection: what it holds could be taken for another part."""
        absent = [
            (number, copy + path[1:])
            for (copy, collection), numbers in held.items()
            for number, path in enumerate(self.paths)
            if path[:1] == (collection,) and number not in numbers
        ]
        if absent:
            empty = {tuple(map(_name, keys)) for keys in _empty_nodes(tree)}
            for number, path in absent:
                if not any(path[:end] in empty for end in range(len(path) + 1)):
                    name = "/".join(self.paths[number])
                    raise InputError(f"The tree lacks {name}; cut the traced variables or a whole collection.")

    def _ambiguous(self, path: Path, numbers: Collection[int]) -> InputError:
        names = " and ".join("/".join(self.paths[number]) for number in numbers)
        return InputError(f"{'/'.join(path)} can mean {names}; pass the tree with its collections.")


class _Fit(NamedTuple):
    numbers: list[int]
    copy: Path
    position: int | None
    shortened: bool
    """Whether the collection is missing."""


def leaf_paths(tree: Any) -> list[tuple[Path, Any]]:
    """Each leaf of a pytree with its path as plain names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(tuple(map(_name, keys)), leaf) for keys, leaf in leaves]


def _named_tails(path: Path) -> Iterator[Path]:
    """The ends of a path in which not all is a position."""
    tails = (path[start:] for start in range(len(path)))
    return (tail for tail in tails if not all(map(str.isdecimal, tail)))


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _is_position(key: Any) -> bool:
    return isinstance(key, SequenceKey) or (isinstance(key, DictKey) and str(key.key).isdecimal())


def _copies(keys: KeyPath, path: Path) -> Iterator[int]:
    """Numbers of keys, in ascending order, that lead to the traced tree or to what can be a copy of it."""
    yield 0
    behind_mapping = False  # whether the last key that is no position is that of a mapping
    for start, key in enumerate(keys, start=1):
        before, names = keys[: start - 1], path[: start - 1]
        if _is_position(key):
            if not behind_mapping:
                yield start
        elif isinstance(key, DictKey):
            behind_mapping = True
            in_state = OPTIMIZER in names or all(map(_is_position, before))
            if before and in_state and (_is_position(before[-1]) or names[-1] == OPTIMIZER):
                yield start
        else:
            behind_mapping = False
            yield start


def _empty_nodes(tree: Any) -> Iterator[KeyPath]:
    """Where nodes without children stand, such as those that optimizers put in the place of what they do not train."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_empty)
    return (keys for keys, leaf in leaves if _is_empty(leaf))


def _is_empty(node: Any) -> bool:
    level = default_registry.flatten_one_level(node)
    return level is not None and not list(level[0])
