"""Commands whose modules are imported when they are called: together they take a second to import."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand


class LazyCommand(TyperCommand):
    """Stands for a command or a group of commands, in the list of commands and in completion.

    ``module`` has it in a ``cli: typer.Typer``. ``help`` is the first sentence of its help.
    """

    def __init__(self, name: str, *, module: str, help: str) -> None:  # noqa: A002 - as typer calls it
        super().__init__(name, help=help)
        self._module = module

    def make_context(self, info_name: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - only passed on
        """Return the context in which the command itself runs, or shows its help."""
        cli = typer.Typer(rich_markup_mode=None)
        cli.add_typer(import_module(self._module).cli)
        return typer.main.get_group(cli).commands[info_name].make_context(info_name, *args, **options)
