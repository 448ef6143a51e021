"""`python -m export CHECKPOINT|BUNDLE --data DATA --calibration IMAGES --out BUNDLE`."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cxrvit_edge.errors import CxrVitError, ParityError, UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class Range(str, Enum):
    auto = "auto"
    minmax = "minmax"
    entropy = "entropy"
    percentile = "percentile"
    mse = "mse"


class Attention(str, Enum):
    decomposed = "decomposed"
    op = "op"


class Variant(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    int8_cpu = "int8-cpu"


@app.command()
def main_command(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="model.safetensors of a training run, or a bundle.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write; an older bundle there is replaced.")],
    data: Annotated[
        Path | None,
        typer.Option(help="manifest.csv, or its folder: val chooses, test blesses. By default --calibration's."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="CheXpert folder, manifest.csv (its train split), other CSV or folder. Without: no INT8."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the manifest; by default the source's.")] = None,
    precision: Annotated[
        list[Variant] | None, typer.Option(help="Variant beside fp32; may be repeated. By default all.")
    ] = None,
    attention: Annotated[
        Attention, typer.Option(help="op: opset 23 with one Attention node, which TensorRT reads from 10.14 on.")
    ] = Attention.decomposed,
    images: Annotated[int, typer.Option(help="Calibration images.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the choice of calibration images.")] = 0,
    range_: Annotated[
        Range, typer.Option("--range", help="How an activation's range is estimated; auto: by accuracy on val.")
    ] = Range.auto,
    percentile: Annotated[float, typer.Option(help="For --range percentile.")] = 99.999,
    smooth: Annotated[
        float | None, typer.Option(help="Alpha of the migration into LayerNorm, 0 for none; by default on val.")
    ] = None,
    search_images: Annotated[int, typer.Option(help="Images of val that choices are made on.")] = 32,
    sensitivity_images: Annotated[
        int, typer.Option(help="Images of val on which each block's cost is measured; 0: only if it must be.")
    ] = 8,
    max_flips: Annotated[int | None, typer.Option(help="INT8: images whose label, flag or status changes.")] = None,
    max_probability: Annotated[float | None, typer.Option(help="INT8: largest probability difference.")] = None,
    max_logits_rms: Annotated[float | None, typer.Option(help="INT8: RMS logit difference, of their std.")] = None,
    max_severity_mae: Annotated[float | None, typer.Option(help="INT8: MAE of the severity score.")] = None,
    allow_failing: Annotated[
        list[Variant] | None, typer.Option(help="Write this variant though it is outside its bounds, marked so.")
    ] = None,
    debug: Annotated[
        Path | None, typer.Option(help="Folder for a layer-by-layer comparison of a variant that fails.")
    ] = None,
) -> None:
    """Make a bundle: weights, graphs, golden set, decisions, manifest; each variant held against the reference.

    \b
    Examples:
      python -m export runs/default/model.safetensors --data ../shared/data --out bundle-out
      python -m export cxrvit_edge/bundles/default --calibration CheXpert-v1.0-small --data data/manifest.csv --out b

    \b
    Exit code:
      0  the bundle is there, whole
      2  a setting, the data or the source cannot be used
      3  a variant departs from the reference by more than its bounds; nothing was written
    """
    from export import parity, recipe, variants
    from export.bundle import export
    from train.data import manifest

    given = {"flips": max_flips, "probability": max_probability}
    given |= {"logits_rms": max_logits_rms, "severity_mae": max_severity_mae}
    own = replace(parity.BOUNDS["int8"], **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
    int8 = recipe.Int8Options(
        calibration=calibration,
        images=images,
        seed=seed,
        estimator=range_.value,
        percentile=percentile,
        smooth=smooth,
        search_images=search_images,
        sensitivity_images=sensitivity_images,
        bounds=own,
    )
    options = variants.Options(
        precisions=tuple(p.value for p in precision) if precision else variants.PRECISIONS,
        attention=attention.value,
        int8=int8,
        bounds={**parity.BOUNDS, "int8": own, "int8-cpu": own},
        allow_failing=tuple(a.value for a in allow_failing or ()),
        debug=debug,
    )
    if calibration is None:
        if asked := [p.value for p in precision or () if p.value.startswith("int8")]:
            raise UsageError(f"--precision {asked[0]} needs --calibration: name a CheXpert folder, a CSV or a folder")
        if precision is None:
            typer.echo("no --calibration: int8 and int8-cpu are left out", err=True)
    where = data or calibration
    if where is None:
        raise UsageError("no --data: name a manifest.csv whose val split chooses and whose test split blesses")
    try:
        records = manifest.read(where)
    except UsageError as error:
        if data is not None:
            raise
        raise UsageError(f"{error}. Without --data, --calibration must be one; else name --data too") from error
    typer.echo(export(source, records, out, name=name, say=lambda text: typer.echo(text, err=True), options=options))


def main() -> None:
    try:
        app()
    except (CxrVitError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(3 if isinstance(error, ParityError) else 2) from None


if __name__ == "__main__":
    main()
