"""`python -m train`: one verb a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxrvit_edge.errors import CxrVitError

app = typer.Typer(help="Train the networks of cxrvit-edge.", no_args_is_help=True, add_completion=False)


@app.callback()
def _verbs() -> None:
    """Train the networks of cxrvit-edge."""


@app.command()
def joint(
    data: Annotated[Path, typer.Option(help="Folder with manifest.csv, severity.csv, masks/masks.csv.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run in it is resumed.")],
    preset: Annotated[str, typer.Option(help="Network size: edge, small or paper.")] = "edge",
    schedule: Annotated[str, typer.Option(help="Phases as size:epochs:batch.")] = "256:13:16,384:3:12,512:1:8",
    lr: Annotated[float, typer.Option(help="Peak learning rate at batch 16.")] = 8e-4,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    all_licences: Annotated[bool, typer.Option(help="Also images whose licence bars published weights.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for all.")] = 0,
) -> None:
    """One shared trunk, all heads.

    Example: python -m train joint --data ../shared/data --out runs/default
    """
    import torch

    from cxrvit_edge.model.config import preset as network_preset
    from cxrvit_edge.preprocess import PreprocessConfig
    from train.cache import open_cache
    from train.data import manifest
    from train.joint import Joint, JointOptions, parse_schedule

    if threads:
        torch.set_num_threads(threads)
    records = manifest.read(data, reuse=None if all_licences else manifest.REUSABLE)
    preprocessing = PreprocessConfig()
    typer.echo(f"{len(records)} images", err=True)
    cache = open_cache(records, out.parent / "cache", preprocessing)
    options = JointOptions(phases=parse_schedule(schedule), lr=lr, seed=seed)
    run = Joint(network_preset(preset), options, records, cache, preprocessing, out, lambda t: typer.echo(t, err=True))
    typer.echo(run.run())


def main() -> None:
    try:
        app()
    except CxrVitError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
