"""The command line: the root and its commands, each imported only when it is used.

A noun or verb lives in the module of its name and is called like it (`streamjobs/cli/topic.py` has `topic`). Its group is made
with `cls=Group`, its verbs with `examples=[…]`, and functions that need the app take `@pass_session`.
"""

from __future__ import annotations

from typing import Any

import click

from streamjobs.cli.command import Group, Lazy

COMMANDS = {
    "worker": Lazy("streamjobs.cli.worker", "Run jobs."),
    "publish": Lazy("streamjobs.cli.publish", "Publish jobs."),
    "lag": Lazy("streamjobs.cli.lag", "Show how far workers are behind, and whether they catch up."),
    "topic": Lazy("streamjobs.cli.topic", "Plan and apply the topics that an app needs."),
    "group": Lazy("streamjobs.cli.group", "Show consumer groups, and move where they read."),
    "dlt": Lazy("streamjobs.cli.dlt", "Look at dead letters, replay or discard them."),
    "config": Lazy("streamjobs.cli.config", "Show the settings in force, and where each was set."),
    "doctor": Lazy("streamjobs.cli.doctor", "Check settings, cluster, topics, clocks and job types."),
    "demo": Lazy("streamjobs.cli.demo", "See it all run, with nothing installed."),
}


def _print_version(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"streamjobs {_version()}")
        ctx.exit()


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("streamjobs")
    except metadata.PackageNotFoundError:
        return "(run from its source)"


@click.group(
    cls=Group,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    examples=[
        "streamjobs worker -A billing:app invoices",
        """streamjobs publish -A billing:app send_invoice '{"invoice_id": 7, "customer_id": "acme"}'""",
        'eval "$(_STREAMJOBS_COMPLETE=bash_source streamjobs)"      # completion; also zsh_source, fish_source',
    ],
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
def root() -> None:
    """Background jobs on Apache Kafka: typed, ordered by key, retried on time, and nothing lost."""


def main() -> None:
    """The `streamjobs` program."""
    root.main(prog_name="streamjobs")
