"""``--config`` and ``--print-config``: the options of a command from a TOML file, and as one.

At the top of the file stand options by their names; the tables ``generation`` and ``precision``
hold the configuration; a table with a command's name holds options for that command alone. What is
given on the command line wins over a command's table, and that over the top of the file.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin

import typer

from seqproc._util.toml import TomlFile, dumps
from seqproc.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from seqproc.config import GenerationConfig, PrecisionConfig

_SETTINGS = ("generation", "precision")
_OF_THE_COMMAND_LINE = ("config", "print_config", "quiet", "json", "traceback")
# Options that are settings of the configuration, and where they stand in a file.
_PLACES = {
    "temperature": "generation",
    "top_p": "generation",
    "greedy": "generation, as do_sample = false",
    "tf_batch_size": "generation",
    "tf_token_budget": "generation",
    "tf_share_prompts": "generation",
    "max_new_tokens": "generation",
    "gen_batch_size": "generation",
    "stop": "generation",
    "reward_weights": "generation",
    "entropy_fp64": "precision",
}
_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a string",
    list: "a list of strings",
}

Parameters = Mapping[str, inspect.Parameter]  # of a command, by their keys in a file


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a file's options for those that are not given. A callback of ``--config``."""
    if path is not None and not context.resilient_parsing:
        file, parameters = TomlFile.read(path), _commands(context)
        given = _options(file, str(context.info_name), parameters)
        known = parameters[str(context.info_name)]
        context.default_map = {known[key].name: value for key, value in given.items()}
    return path


def read_settings(path: Path | None) -> tuple[GenerationConfig, PrecisionConfig]:
    """The settings of a file; the defaults where there is none.

    Raises:
        ConfigError: a file that cannot be read, or a setting that is not valid, with its line.
    """
    from seqproc.config import load_config

    if path is None:
        return load_config(None)
    file = TomlFile.read(path)
    tables = {name: file.values[name] for name in _SETTINGS if name in file.values}
    try:
        return load_config(tables)
    except ConfigError as error:
        faults = list(_faults(file, tables, ()))
        raise ConfigError("; ".join(faults) if faults else f"{path}: {error}") from error


def print_config(
    command: str, signature: inspect.Signature, values: Mapping[str, Any], groups: Iterable[Any]
) -> None:
    """Print what a command would run with, as a file that ``--config`` reads.

    Args:
        command: its name.
        signature: its options.
        values: of the options, by the parameters' names.
        groups: the options in groups, the policy among them.
    """
    from seqproc.cli.build import build_config
    from seqproc.cli.manner import current_manner, give_result
    from seqproc.cli.options import PolicyOptions, ResponseOptions

    groups = list(groups)
    policy = next(one for one in groups if isinstance(one, PolicyOptions))
    response = next((one for one in groups if isinstance(one, ResponseOptions)), None)
    settings = build_config(policy, response, values.get("reward_weights"))
    options = {key: values[one.name] for key, one in _parameters(signature).items()}
    config = options | {name: dataclasses.asdict(one) for name, one in settings.items()}
    text = dumps(config).strip()
    give_result({"config": config}, text)
    if not current_manner().is_terse:
        typer.echo(f"# seqproc {command} --config FILE\n{text}")


def _commands(context: typer.Context) -> Mapping[str, Parameters]:
    """The commands that take a file, and the keys that each of them has in it."""
    group: Any = context.parent and context.parent.command
    signatures = {
        name: inspect.signature(command.callback) for name, command in group.commands.items()
    }
    return {
        name: _parameters(signature)
        for name, signature in signatures.items()
        if "config" in signature.parameters
    }


def _parameters(signature: inspect.Signature) -> Parameters:
    """What may stand in a file."""
    return {
        _key(one): one
        for one in signature.parameters.values()
        if one.name not in _OF_THE_COMMAND_LINE and one.name not in _PLACES
    }


def _key(parameter: inspect.Parameter) -> str:
    """An option's name on the command line, without its dashes; an argument's own."""
    _, option = get_args(parameter.annotation)
    given = (option.default, *(option.param_decls or ()))  # the first, in an annotation, is there
    names = [name for name in given if isinstance(name, str) and name.startswith("--")]
    name = names[0] if names else parameter.name
    return str(name).removeprefix("--").replace("-", "_")


def _options(file: TomlFile, command: str, commands: Mapping[str, Parameters]) -> Mapping[str, Any]:
    """The options that a file has for a command.

    Raises:
        ConfigError: a key that is unknown, stands in the wrong place, or has a wrong value.
    """
    at_top = {key: value for key, value in file.values.items() if not isinstance(value, Mapping)}
    for key, value in at_top.items():
        if key in (*_SETTINGS, *commands) and key not in commands[command]:
            raise ConfigError(f"{file.where(key)}: {key} must be a table, got {value!r:.200}")
        _require_valid(file, (key,), value, command, commands)
    own = file.values.get(command)
    _require_valid_tables(file, commands)
    return {**at_top, **(own if isinstance(own, Mapping) else {})}


def _require_valid_tables(file: TomlFile, commands: Mapping[str, Parameters]) -> None:
    """Refuse a table that is none, and in those of all commands what these do not take."""
    known = [*_SETTINGS, *commands]
    for name, table in file.values.items():
        if not isinstance(table, Mapping):
            continue
        if name not in known:
            raise ConfigError(
                f"{file.where(name)}: unknown table {name!r}: known are {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
        for key, value in table.items() if name in commands else ():
            _require_valid(file, (name, key), value, name, {name: commands[name]})


def _unknown(key: str, command: str, commands: Mapping[str, Parameters]) -> str:
    """What to say of a key that a command does not have."""
    if key in _PLACES:
        return f"{key!r} belongs in the table {_PLACES[key]}"
    owners = [name for name, known in commands.items() if key in known]
    if owners:
        return (
            f"{key!r} is an option of {' and '.join(owners)}, and not of {command}: put it in the "
            f"table {owners[0]}"
        )
    known = [*commands[command], *_SETTINGS]
    hint = did_you_mean(key, known)
    return f"unknown key {key!r}: known for {command} are {', '.join(known)}{hint}"


def _require_valid(
    file: TomlFile,
    keys: tuple[str, ...],
    value: Any,
    command: str,
    commands: Mapping[str, Parameters],
) -> None:
    """Refuse a key that a command does not have, and a value that it does not take."""
    key = keys[-1]
    if key not in commands[command]:
        raise ConfigError(f"{file.where(*keys)}: {_unknown(key, command, commands)}")
    kind = _kind(commands[command][key])
    accepted: Any = {float: (int, float), Path: str}.get(kind, kind)
    is_right = isinstance(value, accepted) and (kind is bool) == isinstance(value, bool)
    if kind is list and is_right:
        is_right = all(isinstance(item, str) for item in value)
    if not is_right:
        raise ConfigError(f"{file.where(*keys)}: {key} must be {_KINDS[kind]}, got {value!r:.200}")


def _kind(parameter: inspect.Parameter) -> Any:
    """bool, int, float, str, Path or list."""
    kind, _ = get_args(parameter.annotation)
    if NoneType in get_args(kind):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    return get_origin(kind) or kind


def _faults(file: TomlFile, values: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with the settings, each by itself, and where."""
    from seqproc.config import load_config

    for key, value in values.items():
        path = (*keys, key)
        if isinstance(value, Mapping) and (not keys or keys == ("precision",)):
            yield from _faults(file, value, path)
            continue
        nested = value
        for name in reversed(path):
            nested = {name: nested}
        try:
            load_config(nested)
        except ConfigError as error:
            yield f"{file.where(*path)}: {error}"
