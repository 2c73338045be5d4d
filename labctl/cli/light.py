"""What verbs say about their command line, in typer's words but without typer, which takes 40 ms to load.

A command line that is written as people write them (`read`) is read here.  Everything else is typer's:
help, completion, mistakes and all that is not understood at once.  So whatever `read` answers is what typer
would have found, which a test holds it to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

Function = Callable[..., Any]
# What may be said of an option or an argument without changing how it is read.
_SILENT = {"metavar", "help", "autocompletion"}


class Said:
    """What is said of a parameter."""

    def __init__(self, *names: str, **more: Any) -> None:
        self.names, self.more = names, more


class Option(Said):
    """As typer.Option."""


class Argument(Said):
    """As typer.Argument."""


class Parameter(NamedTuple):
    """A parameter of a verb: `kind` is its type, `default` is ... where it must be given."""

    name: str
    kind: Any
    said: Said
    default: Any


class Verb(NamedTuple):
    """A verb of an app."""

    name: str
    function: Function
    settings: dict[str, Any]


class Typer:
    """Verbs, as typer.Typer collects them."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.verbs: dict[str, Verb] = {}

    def command(self, name: str = "", **settings: Any) -> Callable[[Function], Function]:
        """Add a verb, named after its function where no name is given."""

        def add(function: Function) -> Function:
            called = name or function.__name__.rstrip("_").replace("_", "-")
            self.verbs[called] = Verb(called, function, settings)
            return function

        return add

    def group(self) -> Any:
        """The verbs as typer makes commands of them."""
        import typer

        app = typer.Typer(**self.settings)
        for verb in self.verbs.values():
            app.command(verb.name, **verb.settings)(_for_typer(verb.function))
        return typer.main.get_group(app)


def _for_typer(function: Function) -> Function:
    import inspect
    import operator

    import typer

    parameters = []
    for parameter in parameters_of(function):
        made = typer.Option if isinstance(parameter.said, Option) else typer.Argument
        told = made(*parameter.said.names, **parameter.said.more)
        default = inspect.Parameter.empty if parameter.default is ... else parameter.default
        keyword = inspect.Parameter.KEYWORD_ONLY
        kind: Any = operator.getitem(Annotated, (parameter.kind, told))
        parameters.append(inspect.Parameter(parameter.name, keyword, annotation=kind, default=default))
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def parameters_of(function: Function) -> list[Parameter]:
    """The parameters of a verb, which says by `parameters` what it has."""
    said: list[Parameter] = function.parameters()  # type: ignore[attr-defined]
    return said


def written(function: Function) -> list[Parameter]:
    """The parameters as a function has them written, but for the first, which is the session."""
    code = function.__code__
    names = code.co_varnames[1 : code.co_argcount]
    defaults = function.__defaults__ or ()
    missing = (...,) * (len(names) - len(defaults))
    found = []
    for name, default in zip(names, (*missing, *defaults), strict=True):
        kind = function.__annotations__[name]
        found.append(
            parameter(name, eval(kind, function.__globals__) if isinstance(kind, str) else kind, default)
        )
    return found


def parameter(name: str, annotated: Any, default: Any) -> Parameter:
    """A parameter by its annotation."""
    return Parameter(name, annotated.__origin__, annotated.__metadata__[0], default)


class _NotPlain(Exception):
    """Typer's affair."""


def read(verb: Verb, words: Sequence[str]) -> dict[str, Any] | None:
    """The values of a verb's parameters, or None for what only typer reads."""
    if verb.settings.keys() - {"context_settings"}:
        return None
    settings = verb.settings.get("context_settings", {})
    if settings.keys() - {"allow_interspersed_args"}:
        return None
    try:
        return _values(parameters_of(verb.function), words, settings.get("allow_interspersed_args", True))
    except (_NotPlain, ValueError):
        return None


def _values(parameters: Sequence[Parameter], words: Sequence[str], interspersed: bool) -> dict[str, Any]:
    options: dict[str, Parameter] = {}
    for one in parameters:
        if isinstance(one.said, Option):
            options |= dict.fromkeys(one.said.names, one)
    given: dict[str, list[Any]] = {}
    free: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            free += rest
        elif word.startswith("-") and word != "-":
            _option(word, rest, options, given)
        else:
            free.append(word)
            if not interspersed:
                free += rest
    values: dict[str, Any] = {}
    for one in parameters:
        if isinstance(one.said, Option):
            many = given.get(one.name, [])
            values[one.name] = many if one.kind == list[str] and many else many[-1] if many else one.default
    _arguments([one for one in parameters if isinstance(one.said, Argument)], free, values)
    return {one.name: values[one.name] for one in parameters}


def _option(
    word: str, rest: Iterator[str], options: dict[str, Parameter], given: dict[str, list[Any]]
) -> None:
    name, equals, text = word.partition("=")
    one = options.get(name)
    # Options that are set by one name and unset by another, and those with bounds, are not plain.
    if one is None or one.said.more.keys() - _SILENT or any("/" in other for other in one.said.names):
        raise _NotPlain
    if one.kind is bool:
        if equals:
            raise _NotPlain
        given[one.name] = [True]
        return
    if equals and not word.startswith("--"):
        raise _NotPlain
    if not equals:
        text = next(rest, "-")
        if text.startswith("-"):  # a missing value, or one that looks like an option
            raise _NotPlain
    given.setdefault(one.name, []).append(_made(one.kind, text))


def _arguments(arguments: Sequence[Parameter], free: list[str], values: dict[str, Any]) -> None:
    for place, one in enumerate(arguments):
        if one.said.more.keys() - _SILENT or one.said.names:
            raise _NotPlain
        if one.kind == list[str]:
            if place != len(arguments) - 1 or (not free and one.default is ...):
                raise _NotPlain
            values[one.name], free = (free or list(one.default)), []
        elif free:
            values[one.name] = _made(one.kind, free[0])
            free = free[1:]
        elif one.default is ...:
            raise _NotPlain
        else:
            values[one.name] = one.default
    if free:
        raise _NotPlain


def _made(kind: Any, text: str) -> Any:
    if kind is str or kind == list[str]:
        return text
    if kind in (int, float, Path) and text.isascii():
        return kind(text)
    raise _NotPlain
