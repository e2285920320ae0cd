"""Pytrees as JSON and a list of leaves, so that a file names no class.

A layout is a leaf's number, null, or {"dict": [[key, layout], ...]}, {"list": [layout, ...]} or {"tuple": [...]}. Nodes
of other kinds (states, modules, named tuples) become dicts of their parts by name.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from jaxslim.errors import InputError
from jaxslim.storage.integrity import DamageError


def layout_of(tree: Any) -> Any:
    """The layout of a pytree, whose leaves are numbered in JAX's order."""
    count = 0

    def visit(node: Any) -> Any:
        nonlocal count
        if node is None:
            return None
        parts, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
        if parts and not parts[0][0]:
            count += 1
            return count - 1
        keys, inner = [path[0] for path, _ in parts], [visit(part) for _, part in parts]
        if type(node) in (list, tuple):
            return {type(node).__name__: inner}
        if parts and all(isinstance(key, SequenceKey | FlattenedIndexKey) for key in keys):
            return {"list": inner}
        return {"dict": [[_text(key), part] for key, part in zip(keys, inner, strict=True)]}

    return visit(tree)


def build(layout: Any, leaves: Sequence[Any]) -> Any:
    """The pytree of plain dicts, lists and tuples that has these leaves."""
    match layout:
        case None:
            return None
        case int() if 0 <= layout < len(leaves):
            return leaves[layout]
        case {"dict": [*items]}:
            return {key: build(part, leaves) for key, part in items}
        case {"list": [*parts]}:
            return [build(part, leaves) for part in parts]
        case {"tuple": [*parts]}:
            return tuple(build(part, leaves) for part in parts)
    raise DamageError(f"its meta holds the layout {layout!r:.60}")


def _text(key: Any) -> str | int:
    found = (
        key.key if isinstance(key, DictKey | FlattenedIndexKey) else key.name if isinstance(key, GetAttrKey) else key
    )
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise InputError(f"The variables, inputs or outputs hold the key {found!r:.60}; use strings or whole numbers.")
    return found
