"""A group of verbs one of which need not be named: `bench PROFILE` is `bench run PROFILE`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

DEFAULT = "run"


class DefaultVerb(TyperGroup):
    """A first word that is no verb of the group belongs to the verb `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click.Group.parse_args."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [DEFAULT, *args]
        found: list[str] = super().parse_args(ctx, args)
        return found
