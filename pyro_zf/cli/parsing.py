"""Parsing of command lines: help by topic, and errors that are one line.

The parsing itself is tyro's. Help is shown for a copy of the configuration class whose fields are grouped and whose
defaults are those that apply; a message of tyro is reduced to the line that says what is wrong.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
import keyword
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from pyro_zf.names import there_are
from pyro_zf.training.checks import UsageError
from pyro_zf.training.options import docs_of, meant

__all__ = [
    "IMPORT", "Extra", "by_tyro", "check_flags", "import_parts", "parsed", "show_help", "taken", "value_of",
    "wants_help",
]  # fmt: skip

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number"}
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "{True,False}"}


@dataclasses.dataclass(frozen=True)
class Extra:
    """An option that is taken from the command line before the others are parsed."""

    type: Any
    help: str


#: An option of every command that builds a model.
IMPORT = Extra(
    Path,
    "Python file to run first, which adds parts or models of your own to the registries, such as "
    "pyro_zf.nn.PRIORS. It can be given several times.",
)


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for help."""
    return any(a in ("-h", "--help", "--help-all") for a in arguments)


def parsed(
    config: type[T], arguments: Sequence[str] | None, prog: str, examples: Sequence[str] = ()
) -> T:
    """Parse the command line of a command whose options are the fields of a dataclass.

    Args:
        config: dataclass with a docstring after each field.
        arguments: the command line, by default that of this process.
        prog: name of the command.
        examples: command lines to show at the end of the help.

    Raises:
        UsageError: if the command line is not valid.
        SystemExit: after printing the help.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    known = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    if "run" in known:
        import_parts(given)
    if wants_help(given):
        extras = {"import": IMPORT} if "run" in known else {}
        show_help(config, prog, groups={"": [*known, *extras]}, extras=extras, examples=examples)
    check_flags(given, known)
    return by_tyro(config, given, prog)


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag; if it is given several times, the last value."""
    values = [a.partition("=")[2] for a in arguments if a.startswith(f"{flag}=")]
    values += [b for a, b in itertools.pairwise(arguments) if a == flag]
    return values[-1] if values else None


def taken(arguments: list[str], flag: str) -> str | None:
    """Remove a flag from the arguments and return its value.

    Raises:
        UsageError: if the flag has no value.
    """
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return arguments.pop(i).partition("=")[2]
        if argument == flag:
            if i + 1 == len(arguments):
                raise UsageError(f"{flag} needs a value")
            arguments.pop(i)
            return arguments.pop(i)
    return None


def import_parts(arguments: list[str]) -> tuple[str, ...]:
    """Run the files of ``--import``, and remove these flags from the arguments.

    Returns:
        tuple[str, ...]: the names of the files.

    Raises:
        UsageError: if a file does not exist or fails.
    """
    names = []
    while (given := taken(arguments, "--import")) is not None:
        path = Path(given)
        names.append(path.name)
        if not path.is_file():
            raise UsageError(f"--import {given}: the file does not exist")
        name = f"imported_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"--import {given}: a Python file has a name that ends with .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # options of models are read from the source of their module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UsageError(f"--import {given}: {type(error).__name__}: {error}") from error
    return tuple(names)


def by_tyro(config: type[T], arguments: Sequence[str], prog: str, **options: Any) -> T:
    """Parse by tyro; an error is raised as one line."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(config, args=arguments, prog=prog, **options)
    except SystemExit as error:
        if not said.getvalue():
            raise
        said_in_short = _one_line(said.getvalue(), get_type_hints(config, include_extras=True))
        raise UsageError(f"{said_in_short} ({prog} --help lists the options)") from error


def check_flags(
    arguments: Sequence[str], known: Collection[str], reason: Callable[[str], str] | None = None
) -> None:
    """Reject a flag that is not an option.

    Args:
        arguments: the command line.
        known: names of the options.
        reason: message about an unknown name. By default, it gives the option that was probably meant.

    Raises:
        UsageError: for the first such flag.
    """
    for argument in arguments:
        flag = argument.partition("=")[0]
        name = flag.lstrip("-").replace("-", "_").removeprefix("no_")
        if re.match(r"--[A-Za-z]|-[A-Za-z]$", flag) and name not in known:
            raise UsageError(
                reason(name) if reason else f"there is no option {flag}{meant(name, known)}"
            )


def _one_line(message: str, hints: Mapping[str, Any]) -> str:
    """The error of tyro in one line, without its frame, its help and its types."""
    # After a title come parts between lines of one character, drawn or as hyphens. The first says what is wrong.
    lines = [line.strip("│| ") for line in message.splitlines()[1:]]
    parts = itertools.groupby(lines, lambda line: bool(re.match(r"[╭╰─+-]{2}", line)))
    first = next((list(part) for frame, part in parts if not frame), [])
    text = " ".join(line for line in first if line)
    if found := re.match(r"Error parsing --(\S+): ", text):
        value = re.search(r"(?:from \[(.*?)\]\.|base 10: |to float: )(.*)", text)
        given = (value[1] or value[2]).strip("'") if value else "another value"
        wanted = _WORDS.get(_plain(hints.get(found[1].replace("-", "_"))), "another value")
        return f"--{found[1]} must be {wanted}, got {given}"
    if found := re.match(
        r"invalid choice '(.*?)' for argument '(.*?)'\. Expected one of \((.*)\)", text
    ):
        choices = [c for c in re.findall(r"'(.*?)'", found[3]) if c != "None"]
        return f"{found[2]} {there_are(found[1], choices)}"
    if found := re.match(r"Missing value for argument '(.*?)'", text):
        return f"{found[1]} needs a value"
    if found := re.match(r"Unrecognized options: (.*)", text):
        return f"unexpected argument: {found[1]}"
    if found := re.match(r"Missing from .*?: (?:\S+) (.*?) \(required\)", text):
        return f"missing argument: {found[1][0].lower()}{found[1][1:].rstrip('.')}"
    return text


def show_help(
    config: type,
    prog: str,
    *,
    description: str | None = None,
    docs: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    extras: Mapping[str, Extra] | None = None,
    short: Collection[str] | None = None,
    examples: Sequence[str] = (),
) -> None:
    """Print the options of a command by topic, with the defaults that apply, and exit.

    Args:
        config: dataclass of the options.
        prog: name of the command.
        description: what the command does, by default the docstring of the class.
        docs: what the options are, where the class has no docstring after the field.
        defaults: values to show in place of the defaults of the class.
        groups: names of the options of each topic; the others are not shown. By default, all are in one group.
        extras: options that are not fields of the class.
        short: names of the options to show, by default all.
        examples: command lines to show at the end.

    Raises:
        SystemExit: always.
    """
    hints = get_type_hints(config, include_extras=True)
    docs = {**docs_of(config), **(docs or {})}
    fields = {f.name: f for f in dataclasses.fields(config) if f.init}
    extras, defaults = extras or {}, defaults or {}
    topics: dict[str, Any] = {}
    for topic, names in (groups or {"": list(fields)}).items():
        shown = []
        for name in names:
            if short is not None and name not in short:
                continue
            if name in extras:
                shown.append(_shown(name, extras[name].type, extras[name].help, None))
            else:
                value = defaults.get(name, fields[name].default)
                shown.append(_shown(name, hints[name], docs.get(name, ""), value))
        if shown:
            topics[topic] = shown
    described = (description or config.__doc__ or "").strip()
    if list(topics) == [""]:
        made = dataclasses.make_dataclass("Help", topics[""], namespace={"__doc__": described})
    else:
        members: list[Any] = []
        for topic, shown in topics.items():
            part = dataclasses.make_dataclass(topic, shown, namespace={"__doc__": ""})
            members.append((topic.replace("-", "_"), part, dataclasses.field(default_factory=part)))
        made = dataclasses.make_dataclass("Help", members, namespace={"__doc__": described})
    try:
        tyro.cli(made, args=["--help"], prog=prog, config=(tyro.conf.OmitArgPrefixes,))
    finally:
        if short is not None:
            print("These are the most common options; --help-all lists all of them.\n")
        if examples:
            print("Examples:")
            print("\n".join(f"  {line}" for line in examples))


def _shown(name: str, hint: Any, text: str, value: Any) -> tuple[str, Any, Any]:
    """A field of the class whose help is shown."""
    markers: list[Any] = []
    if get_origin(hint) is Annotated:
        hint, *markers = get_args(hint)
    if value is dataclasses.MISSING:  # a required argument, at its place
        return name, Annotated[hint, *markers, tyro.conf.arg(help=text)], dataclasses.field()
    said = "Default:" in text or "By default" in text or value is None or value == () or value == {}
    settings: dict[str, Any] = {
        "help": text.replace("``", ""),
        "help_behavior_hint": "" if said else f"(default: {value})",
    }
    if keyword.iskeyword(name):  # which no field can be called
        settings["name"], name = name, f"{name}_"
    if hint is bool:
        pair = [] if isinstance(value, bool) else [tyro.conf.FlagCreatePairsOff]
        return (
            name,
            Annotated[bool, *pair, tyro.conf.arg(**settings)],
            dataclasses.field(default=bool(value)),
        )
    argument = tyro.conf.arg(metavar=_metavar(hint), constructor=str, **settings)
    return name, Annotated[Any, *markers, argument], dataclasses.field(default=None)


def _plain(hint: Any) -> Any:
    """A type without annotations and without None."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        others = [x for x in get_args(hint) if x is not type(None)]
        return _plain(others[0]) if len(others) == 1 else hint
    return hint


def _metavar(hint: Any) -> str:
    """How the value of an option is written in the help."""
    if get_origin(hint) in (Union, UnionType):
        return "|".join(_metavar(x) for x in get_args(hint) if x is not type(None))
    if get_origin(hint) is Literal:
        return "{" + ",".join(str(x) for x in get_args(hint)) + "}"
    if get_origin(hint) is tuple:
        return f"[{_metavar(get_args(hint)[0])} ...]"
    return _METAVARS.get(hint, "VALUE")
