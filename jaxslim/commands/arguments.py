"""Command lines from dataclasses: each field is an option, and its docstring is the help."""

import dataclasses
import inspect
import itertools
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
from tyro.conf import Positional
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

METAVARS = {
    **dict.fromkeys(("checkpoint", "init_from", "distill_from", "baseline", "against"), "CHECKPOINT"),
    **dict.fromkeys(("out", "workdir", "data_dir"), "FOLDER"),
    **dict.fromkeys(("name", "model", "optimizer"), "NAME"),
    **dict.fromkeys(("ratio", "macs", "params", "holdout", "max_layer_ratio", "tolerance"), "SHARE"),
    **dict.fromkeys(("label_smoothing", "distill_weight", "progressive", "warmup", "group_lasso_growth"), "SHARE"),
    **dict.fromkeys(("ratios", "lr_drops"), "SHARE ..."),
    "dataset": "NAME|PATH",
    "image": "IMAGE ...",
    "augment": "NAME ...",
    "leave": "LAYER ...",
    "model_args": "NAME=VALUE ...",
    "optimizer_args": "NAME=VALUE ...",
}
"""What `--help` calls the value of an option, unless the field's metadata do; others are named after their type."""

_REGISTRY = ConstructorRegistry()
_Options = TypeVar("_Options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfCheckpoint:
    """What every command asks that takes a checkpoint."""

    checkpoint: Positional[str]
    """Folder of a checkpoint, RUN/best, RUN/latest, or a run, which stands for its latest."""
    dataset: str | None = None
    """Data set to use; by default the one that the network was trained on."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets; by default where the checkpoint found them."""
    model: str | None = None
    """Code of the network, as in `jaxslim train --model my_package.my_module:build`, for a network of your own. A
    checkpoint names such code and never imports it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfCut(OfCheckpoint):
    """What every command asks that cuts channels."""

    min_channels: int = 1
    """Each layer keeps at least this many, its best ones."""
    absorb: bool = True
    """Move what the cut channels passed on, relu(bias), into the layers behind them; the reference drops it."""
    recalibrate: int = 0
    """Training batches to estimate the BatchNorm statistics of the cut network again on, for example 20; 0 keeps the
    old ones."""


def parse(
    kind: type[_Options],
    argv: Sequence[str],
    *,
    prog: str,
    examples: Sequence[str],
    description: str | None = None,
    default: Any = MISSING_NONPROP,
) -> _Options:
    """Read `argv` as an instance of the dataclass `kind`; `--help` and mistakes end the process, as argparse does.

    The docstring of `kind` describes the command, unless `description` does. The options start from the values of
    `default`.
    """
    lines = [*textwrap.wrap(description or inspect.getdoc(kind) or "", 78), "", "Examples:", *examples]
    about = "\n".join(line if line in ("", "Examples:") else f"  {line}" for line in lines)  # tyro joins other lines
    return tyro.cli(kind, args=argv, prog=prog, description=about, default=default, registry=_REGISTRY)


def absolute(path: str) -> str:
    """A path that a user typed, as it is meant from anywhere."""
    return os.path.abspath(os.path.expanduser(path))


def data_of(options: dict[str, Any]) -> dict[str, str]:
    """Take `dataset` and `data_dir` out of options, and return those that were given, with absolute paths."""
    given = {name: value for name in ("dataset", "data_dir") if (value := options.pop(name)) is not None}
    is_path = {"dataset": os.path.exists(os.path.expanduser(given.get("dataset", ""))), "data_dir": True}
    return {name: absolute(value) if is_path[name] else value for name, value in given.items()}


def code_of(options: dict[str, Any]) -> dict[str, str]:
    """Take `model`, the code of a checkpoint's network, out of options, and return it if it was given."""
    model = options.pop("model")
    return {} if model is None else {"model": model}


def word_after(argv: Sequence[str], option: str) -> str | None:
    """The value of `option` in `argv`, as `--option VALUE` or `--option=VALUE`; None if it is not given."""
    found = None
    for word, after in itertools.pairwise([*argv, "--"]):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            found = value if equals else None if after.startswith("--") else after
    return found


@_REGISTRY.struct_rule
def _dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    if not dataclasses.is_dataclass(info.type):
        return None
    hints, told = get_type_hints(info.type, include_extras=True), _field_docstrings(info.type)
    fields = []
    for field in sorted(dataclasses.fields(info.type), key=lambda field: [*told].index(field.name)):
        default = getattr(info.default, field.name, field.default)
        if default is dataclasses.MISSING:
            default = MISSING_NONPROP if field.default_factory is dataclasses.MISSING else field.default_factory()
        hint = "" if default is None or default == () or default == {} else None  # "(default: None)" tells nothing
        metavar = field.metadata.get("metavar") or METAVARS.get(field.name) or _metavar(hints[field.name])
        shown = tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)
        kind: Any = Annotated[hints[field.name], shown]
        fields.append(StructFieldSpec(name=field.name, type=kind, default=default, helptext=told[field.name]))
    return StructConstructorSpec(instantiate=info.type, fields=tuple(fields))


def _metavar(kind: Any) -> str | None:
    """NUMBER for numbers, as many as there are; None leaves the choice to tyro."""
    kinds = {kind, *get_args(kind)}
    if get_origin(kind) is Literal or kind is bool:
        return None
    if {int, float} & kinds:
        return "NUMBER ..." if get_origin(kind) is tuple else "NUMBER"
    return None


def _field_docstrings(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass, as one paragraph; its own fields come before inherited ones."""
    parents = filter(dataclasses.is_dataclass, kind.__mro__)
    fields = (field for parent in parents for field in docstring_parser.parse_from_object(parent).params)
    return {field.arg_name: " ".join((field.description or "").split()) for field in fields}


@_REGISTRY.primitive_rule
def _mapping(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Mapping[str, Any]] | None:
    """`widths=16,M,32 bias=false` for {"widths": (16, "M", 32), "bias": False}."""
    if info.type_origin is not Mapping:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE ...",
        instance_from_str=lambda words: dict(map(_pair, words)),
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [f"{name}={_text(item)}" for name, item in value.items()],
    )


def _pair(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise ValueError(f"{word!r} is not of the form NAME=VALUE")
    return name, _value(value)


def _value(text: str) -> Any:
    """JSON or Python's True, False and None; a tuple where there are commas; otherwise the text itself."""
    if text in (names := {"True": True, "False": False, "None": None}):
        return names[text]
    try:
        return json.loads(text)
    except ValueError:
        return tuple(map(_value, text.removesuffix(",").split(","))) if "," in text else text


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value)) + "," * (len(value) == 1)
    return value if isinstance(value, str) else json.dumps(value)
