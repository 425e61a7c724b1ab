"""The command line's word for a cluster that lets anybody in."""

from typing import Annotated

import typer
from rich.console import Console

InsecureCluster = Annotated[
    bool,
    typer.Option("--insecure-cluster", help="The cluster has no authentication: whoever reaches it runs code on its nodes, and here."),
]


def warn(address: str | None, insecure: bool) -> None:
    """Says on stderr, in one line, what `--insecure-cluster` means for a cluster that is joined."""
    if address is not None and insecure:
        Console(stderr=True, highlight=False).print(
            f"warning: --insecure-cluster: nothing proves who speaks for {address}; whoever reaches one of its ports can run code on every "
            "node and in this process, and read what travels (docs/security.md).",
            markup=False,
            soft_wrap=True,
        )
