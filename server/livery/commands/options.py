"""Turns the settings, or the fields of a dataclass, into options of a command, so that each is written down once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from livery.settings import PREFIX, Settings, flag, load_settings


def takes_settings(
    command: Callable[..., None],
    knobs: Iterable[str] = tuple(Settings.model_fields),
    fixed: Mapping[str, object] | None = None,
) -> Callable[..., None]:
    """A command with an option for each of `knobs` and `--config`, from one that takes the settings first.

    Its other parameters stay options of it. `fixed` are knobs that its user has no say in.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def run(**options: Any) -> None:  # noqa: ANN401  (typer fills these in by the signature below)
        config_file = options.pop("config")
        given = {parameter.name: options.pop(parameter.name) for parameter in own}
        options = {name: None if value == [] else value for name, value in options.items()}  # repeated no time
        command(load_settings(options | dict(fixed or {}), os.environ, config_file), **given)

    parameters = [_parameter(name, Settings.model_fields[name]) for name in knobs]
    parameters.append(
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None,
                typer.Option("--config", metavar="FILE", help="YAML file with any of these", envvar=f"{PREFIX}CONFIG"),
            ],
        )
    )
    parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run


def takes_fields(command: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for each field of the dataclasses among its parameters; others stay options of it.

    Fields are annotated as typer's options are.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    parts: dict[str, type[Any]] = {
        parameter.name: parameter.annotation
        for parameter in own
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }

    def run(**options: Any) -> None:  # noqa: ANN401  (typer fills these in by the signature below)
        made = {
            name: kind(**{field.name: options.pop(field.name) for field in fields(kind)})
            for name, kind in parts.items()
        }
        command(**made, **options)

    parameters = []
    for parameter in own:
        if parameter.name in parts:
            parameters += _of_fields(parts[parameter.name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run


def _of_fields(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """Values stay text here: the settings check them and know what to say."""
    switch, repeatable = field.annotation is bool, field.json_schema_extra == {"repeatable": True}
    usual = field.default.human_readable() if isinstance(field.default, ByteSize) else field.default
    default = "" if field.is_required() or switch or not field.default else f" [default: {usual}]"
    names = f"{flag(name)}/{flag(f'no_{name}')}" if switch and field.default else flag(name)
    option = typer.Option(
        names, help=f"{field.description}{default}", metavar=None if switch else _metavar(name), show_default=False
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[bool | None if switch else list[str] | None if repeatable else str | None, option],
    )


def _metavar(name: str) -> str:
    return name.rsplit("_", 1)[-1].upper()
