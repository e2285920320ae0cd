"""Where an equation stands in the user's code."""

from collections.abc import Iterable
from typing import Any

_INNER = ("<", *(f"/{package}/" for package in ("site-packages", "jaxslim/core", "jaxslim/slim", "importlib")))


def source_line(infos: Iterable[Any]) -> str:
    """File, line and function of the innermost frame outside JAX, its libraries and this package.

    `infos` are source infos of JAX: that of the equation, then those of the calls around it.
    """
    for info in infos:
        for frame in info.traceback.frames if info is not None and info.traceback is not None else ():
            if not any(part in frame.file_name for part in _INNER):
                return f"{frame.file_name}:{frame.line_num} ({frame.function_name.rpartition('<locals>.')[2]})"
    return ""


def scope(infos: Iterable[Any]) -> str:
    """The names of the modules around an equation, such as `VGG/conv0`; empty where the framework gives none."""
    stacks = [str(info.name_stack) for info in infos if info is not None]
    names: list[str] = []
    for name in "/".join(stack for stack in stacks[::-1] if stack).split("/"):
        if name and names[-1:] != [name]:
            names.append(name)
    return "/".join(names)
