"""How task vectors become one weight: a module here that defines ``METHOD`` is the merge method of its name.

Third parties add theirs by an entry point in the group ``lcmmerge.methods`` that leads to a ``Method``. On the command
line and in recipes a method and its parameters are spelled ``ties:density=0.3``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from lcmmerge.errors import OptionError
from lcmmerge.merge.methods.base import Method, MethodParameter, Parameters
from lcmmerge.registry import entries

__all__ = ["Method", "MethodParameter", "Parameters", "complete", "method", "methods", "parse", "spelled"]


def methods() -> Mapping[str, Method]:
    """Every registered method by name, in name order."""
    return cast("Mapping[str, Method]", entries("lcmmerge.merge.methods", "METHOD"))


def method(name: str) -> Method:
    """Raises OptionError where there is none of that name."""
    if name not in methods():
        raise OptionError(f"method {name!r}: unknown", f"choose one of {', '.join(methods())}")
    return methods()[name]


def complete(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """A method's parameters: those that are given, and the defaults of the others. Raises OptionError."""
    known = method(name).parameters
    if strange := sorted(given.keys() - known.keys()):
        cure = f"there are {', '.join(known)}" if known else "it has none"
        raise OptionError(f"method {name}: has no parameter {strange[0]!r}", cure)
    for key, value in given.items():
        if not known[key].low <= value <= known[key].high:
            bounds = f"from {known[key].low:g} to {known[key].high:g}"
            raise OptionError(f"method {name}: {key} is {value:g}", f"choose one {bounds}: {known[key].help}")
    return {key: float(given.get(key, parameter.default)) for key, parameter in known.items()}


def parse(text: str) -> tuple[str, dict[str, float]]:
    """``ties``, or with parameters ``ties:density=0.3``, several with commas between; ``ties:0.3`` is its first one's.

    Raises OptionError.
    """
    name, colon, rest = text.partition(":")
    given = {}
    for number, pair in enumerate(rest.split(",") if colon else ()):
        key, equals, value = pair.partition("=")
        if not (number or equals):  # the first parameter's value alone
            key, value = next(iter(method(name).parameters), ""), pair
        try:
            given[key.strip()] = float(value)
        except ValueError:
            cure = "write a parameter as NAME=NUMBER, such as ties:density=0.3"
            raise OptionError(f"method {text!r}: {pair!r} is not a parameter", cure) from None
    return name, complete(name, given)


def spelled(name: str, parameters: Parameters) -> str:
    """What ``parse`` reads."""
    pairs = ",".join(f"{key}={value!r}" for key, value in parameters.items())
    return f"{name}:{pairs}" if pairs else name
