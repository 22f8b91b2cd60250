"""Configurations: frozen dataclasses to and from plain values (TOML, JSON).

A field may be one of several dataclasses, `A | B`: the table's `kind` says which, the first where it says nothing. A
field that was renamed keeps the name that files have: `field(metadata={"stored_as": "old"})`; both names are read.
"""

import dataclasses
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from .errors import ConfigError, reading
from .limits import read_text

T = TypeVar("T")


def config_from_dict(kind: type[T], values: dict[str, Any], where: str = "configuration") -> T:
    """A frozen config dataclass (nested ones too) from plain values, lists becoming tuples.

    Raises:
        ConfigError: a name that the configuration does not have, a value of another type, a field left out.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # pyrefly: ignore[bad-argument-type]
    renamed = {f.metadata["stored_as"]: f.name for f in fields.values() if "stored_as" in f.metadata}
    values = {renamed.get(name, name): value for name, value in values.items()}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{where} has no field '{unknown[0]}'; its fields are {', '.join(fields)}.")
    none = dataclasses.MISSING
    left_out = [f.name for f in fields.values() if f.default is f.default_factory is none and f.name not in values]
    if left_out:
        raise ConfigError(f"{where} must give the field '{left_out[0]}'.")
    return kind(**{name: _value(fields[name].type, value, f"{where}.{name}") for name, value in values.items()})


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a config dataclass, under the names that files have; tuples stay tuples."""
    plain = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            value = tuple(map(config_to_dict, value))
        elif dataclasses.is_dataclass(value):
            value = config_to_dict(value)
        plain[f.metadata.get("stored_as", f.name)] = value
    return plain


def config_from_toml(kind: type[T], path: str | Path) -> T:
    """A config dataclass from a TOML file; ConfigError if it cannot be read."""
    with reading(path, "a TOML configuration", ConfigError):  # whatever its values do
        return config_from_dict(kind, read_toml(path), Path(path).name)


def read_toml(path: str | Path) -> dict[str, Any]:
    """What a TOML file says; ConfigError if it cannot be read."""
    try:
        with reading(path, "a TOML configuration", ConfigError):
            return tomllib.loads(read_text(Path(path), ConfigError))
    except ConfigError as error:
        if isinstance(error.__cause__, OSError | UnicodeDecodeError | tomllib.TOMLDecodeError):
            why = str(getattr(error.__cause__, "strerror", None) or error.__cause__)  # which says the line
            raise ConfigError(f"{path} cannot be read as a TOML configuration: {why}.") from error
        raise


def _value(kind: Any, value: Any, where: str) -> Any:
    """A field's value; ConfigError if it is not of the field's type."""
    if get_origin(kind) in (Union, UnionType) and isinstance(value, dict):
        kind = _chosen(get_args(kind), value, where)
    if _rows(kind) and isinstance(value, list):
        return tuple(_value(_rows(kind), row, f"{where}[{k}]") for k, row in enumerate(value))
    tables = any(map(dataclasses.is_dataclass, get_args(kind))) or dataclasses.is_dataclass(kind)
    if tables != isinstance(value, dict):
        raise ConfigError(f"{where} is one value, not a table." if isinstance(value, dict) else f"{where} is a table.")
    if isinstance(kind, type) and isinstance(value, dict):
        return config_from_dict(kind, value, where)
    value = _tuples(value)
    if not _fits(kind, value):
        name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
        raise ConfigError(f"{where} must be of type {name}, not {_shown(value)}.")
    return value


def _rows(kind: Any) -> Any:
    """The dataclass of a field that holds any number of them, `tuple[Row, ...]`; None for other fields."""
    inside = get_args(kind)
    rows = get_origin(kind) is tuple and len(inside) == 2 and inside[1] is ... and dataclasses.is_dataclass(inside[0])
    return inside[0] if rows else None


def _chosen(kinds: tuple[Any, ...], value: dict[str, Any], where: str) -> Any:
    """The member of a union of config dataclasses that a table's `kind` names; the first where it names none."""
    names = {str(f.default): k for k in kinds for f in dataclasses.fields(k) if f.name == "kind"}
    if value.get("kind", next(iter(names))) not in names:
        raise ConfigError(f"{where}.kind must be one of {', '.join(names)}, not {_shown(value['kind'])}.")
    return names[value["kind"]] if "kind" in value else kinds[0]


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value is of a type: str, int, float (an int will do), some words, tuples; a bool is no number."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if isinstance(value, tuple) and kinds[-1] is ... else kinds
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, kinds, value))
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return False  # nothing that counts is so large, and libraries take no more
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def _shown(value: Any) -> str:
    """A value for a message; nothing so large that Python would not write it."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
