"""`python -m export CHECKPOINT --data DATA --out BUNDLE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxrvit_edge.errors import CxrVitError

app = typer.Typer(add_completion=False)


@app.command()
def main_command(
    checkpoint: Annotated[Path, typer.Argument(help="model.safetensors of a training run.")],
    data: Annotated[Path, typer.Option(help="manifest.csv, or its folder: val chooses, test blesses.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write; an older bundle there is replaced.")],
    name: Annotated[str, typer.Option(help="Name in the manifest.")] = "default",
) -> None:
    """Make a bundle: stored weights, graph, golden set, operating points, manifest.

    Example: python -m export runs/default/model.safetensors --data ../shared/data --out bundle-out
    """
    from export.bundle import export
    from train.data import manifest

    typer.echo(export(checkpoint, manifest.read(data), out, name=name, say=lambda t: typer.echo(t, err=True)))


def main() -> None:
    try:
        app()
    except (CxrVitError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
