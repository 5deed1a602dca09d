"""The command line.

Each option has an environment twin, which its help shows. Exit codes: 0, done; 1, an error that is told in
one line with its remedy; 2, wrong usage.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import click
from typing_extensions import override

# The commands import what they need when they run: Chainlit takes seconds to import, `--help` should not.
from forebay.cli import (
    bench,
    blobs,
    bring,
    config,
    dead_letters,
    delete_user,
    demo,
    doctor,
    drain,
    environment,
    migrate,
    printing,
    purge,
    status,
    take_along,
)
from forebay.errors import ForebayError, told
from forebay.primitives.visible import visible, visible_lines
from forebay.telemetry.logs import limit_repeats


class _Group(click.Group):
    @override
    def invoke(self, ctx: click.Context) -> Any:
        """A ForebayError ends as one line on standard error, without a traceback."""
        try:
            return super().invoke(ctx)
        except ForebayError as error:
            raise click.ClickException(visible(told(error))) from None
        except click.ClickException as error:
            if type(error) is not click.ClickException:  # what was typed wrong; click says it in its own form
                raise
            raise click.ClickException(visible_lines(error.message)) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("forebay"), "-V", "--version", prog_name="forebay")
@click.pass_context
def main(context: click.Context) -> None:
    """The data layer for busy Chainlit deployments.

    Try it with `forebay demo`. To move an existing deployment, look at `forebay migrate --dry-run`, run
    `forebay migrate`, and return a ForebayDataLayer from your app's @cl.data_layer.

    What a process that was killed had not written yet is in its journal: the next process on the same folder
    writes it out, or `forebay drain`. What the database refused is in `forebay dead-letters list`.

    Settings come from the environment, and from the .env file that Chainlit reads.

    Exit codes: 0, done; 1, an error, told in one line on standard error; 2, wrong usage.
    """
    printing.prepare_streams()
    limit_repeats()
    if context.invoked_subcommand != "demo":  # an app of its own, which has nothing to do with what is here
        context.obj = environment.load()


main.add_command(bench.bench)
main.add_command(blobs.blobs)
main.add_command(demo.demo)
main.add_command(migrate.migrate)
main.add_command(drain.drain)
main.add_command(dead_letters.dead_letters)
main.add_command(doctor.doctor)
main.add_command(status.status)
main.add_command(config.config)
main.add_command(purge.purge)
main.add_command(delete_user.delete_user)
main.add_command(take_along.export)
main.add_command(bring.bring)

__all__ = ["main"]
