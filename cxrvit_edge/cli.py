"""The command line: one function a verb, no logic in it. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import json
import sys
from enum import Enum
from typing import Annotated, Any

import typer

from cxrvit_edge.errors import UsageError
from cxrvit_edge.exits import FAILED, NOTHING_KEPT, errors_told, take_signals

app = typer.Typer(
    name="cxrvit-edge",
    help="Chest radiograph triage on the edge. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Backend(str, Enum):
    auto = "auto"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"
    torch = "torch"


class Precision(str, Enum):
    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Sensitivity(str, Enum):
    percent80 = "80"
    percent95 = "95"


BundleOption = Annotated[
    str | None, typer.Option("--bundle", metavar="DIR", help="Bundle folder or .zip; the embedded one by default.")
]
SplitOption = Annotated[str, typer.Option(metavar="NAME", help="Rows of a table of labels to take, or all.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but errors.")]


@app.command()
def triage(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", show_default=False)],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the results.", show_default=False)],
    bundle: BundleOption = None,
    backend: Annotated[Backend, typer.Option(help="What runs the network.")] = Backend.auto,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the network.")] = Precision.auto,
    sensitivity: Annotated[
        Sensitivity, typer.Option(help="Flag at the operating point of at least so many per cent on validation films.")
    ] = Sensitivity.percent80,
    selective: Annotated[
        bool, typer.Option("--selective", help="What the network is undecided about is for review.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images a batch, full ones; by default what is ready.")
    ] = None,
    latency: Annotated[bool, typer.Option("--latency", help="One image at a time: the first result soonest.")] = False,
    throughput: Annotated[bool, typer.Option("--throughput", help="Full batches: the most images a second.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Files read at once; by default one a core.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with what comes, until Ctrl-C.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop the results that are in DIR and start anew.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Trust no record: repeat the golden check, compare files by hash.")
    ] = False,
    views: Annotated[
        str | None, typer.Option(metavar="FILE.csv", help="Columns file,view: comes before what headers say.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write Chrome trace events: what each thread did when.")
    ] = None,
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Also links that leave PATH.")] = False,
    max_pixels: Annotated[int, typer.Option(min=1, metavar="N", help="Larger pictures are rejected.")] = 100_000_000,
    max_bytes: Annotated[int, typer.Option(min=1, metavar="N", help="Larger files are rejected.")] = 536_870_912,
    max_frames: Annotated[int, typer.Option(min=1, metavar="N", help="More frames are rejected.")] = 1000,
    max_depth: Annotated[int, typer.Option(min=1, metavar="N", help="Deeper DICOM sequences are rejected.")] = 32,
    decode_seconds: Annotated[float, typer.Option(min=0.1, metavar="S", help="A decoder is ended after so long.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Read chest radiographs and write a worklist, most urgent first.

    PATH is a DICOM, PNG, JPEG, TIFF or BMP file, or a folder that is searched for them; hidden files are left out.
    DIR then holds results.jsonl, worklist.csv and report.html. Run again, it goes on where it was.

    \b
    Examples:
      cxrvit-edge triage examples/ --out triage-out
      cxrvit-edge triage /mnt/incoming --out triage-out --watch

    \b
    Exit code:
      0  every input got a result or a rejection
      1  some inputs failed; they are on the worklist, and are tried again next time
      2  wrong use: a setting, a bundle or the output folder cannot be used
      3  the network did not reproduce its golden outputs on this box, and was not used
    """
    with errors_told():
        from cxrvit_edge import discover
        from cxrvit_edge.progress import ProgressLine, told
        from cxrvit_edge.radiograph import Limits
        from cxrvit_edge.triage import Triage

        if latency and throughput:
            raise UsageError("--latency and --throughput: leave one of them out")
        discover.require(paths, out)
        engine = Triage.open(
            bundle,
            backend=backend.value,
            precision=precision.value,
            batch_size=batch_size,
            workers=workers,
            mode="latency" if latency else "throughput" if throughput else "auto",
            verify=verify,
            limits=Limits(
                max_pixels=max_pixels,
                max_bytes=max_bytes,
                max_frames=max_frames,
                max_depth=max_depth,
                decode_seconds=decode_seconds,
            ),
            views=views,
            follow_links=follow_links,
            sensitivity=int(sensitivity.value),
            selective=selective,
        )
        shown = not quiet and sys.stderr.isatty()
        with ProgressLine(paths, out, shown=shown, counted=not watch, follow_links=follow_links) as line:
            summary = engine.run(paths, out, fresh=fresh, verify=verify, watch=watch, trace=trace, progress=line.update)
        if not quiet:
            typer.echo(told(summary), err=True)
        if as_json:
            _print_json(summary.to_dict())
        if summary.failures:
            raise typer.Exit(FAILED)


class EngineBackend(str, Enum):
    auto = "auto"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


@app.command()
def build(
    bundle: Annotated[
        str | None, typer.Argument(metavar="BUNDLE", help="Bundle folder or .zip; the embedded one by default.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", metavar="SM", help="RTX target such as sm86; needs no GPU.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option("--precision", metavar="P", help="fp32, fp16 or int8; by default all there are.")
    ] = None,
    backend: Annotated[EngineBackend, typer.Option(help="What compiles.")] = EngineBackend.auto,
    batch_size: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Largest batch.")] = 4,
    require_fused_attention: Annotated[bool, typer.Option(help="Take no engine whose attention is not fused.")] = True,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Compile even what is there already.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make this box ready: compile engines for its GPU, or without one find the settings its processor is fastest with.

    Without --target engines are for this box and go to the user's cache; with it they are compiled ahead of time, go
    into the bundle, and are looked up there. --target and --precision may be given several times.

    \b
    Examples:
      cxrvit-edge build
      cxrvit-edge build bundle-out --target sm86 --target sm89 --precision fp16

    \b
    Exit code:
      0  every engine is there
      2  an engine cannot be built, or its attention is not fused; a setting or the bundle cannot be used
      3  an engine did not reproduce the golden outputs on this box
    """
    with errors_told():
        from cxrvit_edge.build import build as build_engines
        from cxrvit_edge.build import told
        from cxrvit_edge.bundle import Bundle
        from cxrvit_edge.progress import StepLine

        with StepLine(shown=not quiet and sys.stderr.isatty()) as line:
            built = build_engines(
                Bundle.open(bundle),
                targets=target or (),
                precisions=precision or (),
                backend=backend.value,
                batch_size=batch_size,
                require_fused=require_fused_attention,
                rebuild=rebuild,
                say=line.say if not quiet else lambda _: None,
                progress=line.update,
            )
        if as_json:
            _print_json({"engines": [b.to_dict() for b in built]})
        else:
            typer.echo("\n".join(told(built)))


@app.command()
def benchmark(
    data: Annotated[
        str | None, typer.Option(metavar="CSV|DIR", help="Labelled films: a table, or a folder for each class.")
    ] = None,
    split: SplitOption = "test",
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Take so many of them, drawn by class.")
    ] = None,
    bundle: BundleOption = None,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", metavar="B", help="Back end, or all; by default what triage takes.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option("--precision", metavar="P", help="fp32, fp16 or int8; by default all there are.")
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="Measure each at least so long.")] = 10.0,
    reference: Annotated[
        str | None, typer.Option(metavar="FILE.csv", help="outputs.csv of another report, to hold this one against.")
    ] = None,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the report.")] = "benchmark-out",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a bundle on this box: latency, throughput, end to end; with labelled films accuracy and parity too.

    DIR then holds report.html, report.json, latency.csv, accuracy.csv, parity.csv and outputs.csv. The variants take
    turns, so that what else the box does slows all alike. --backend and --precision may be given several times.

    \b
    Examples:
      cxrvit-edge benchmark
      cxrvit-edge benchmark --data data/manifest.csv --split test --out report
      cxrvit-edge benchmark --data data/manifest.csv --reference workstation/outputs.csv

    \b
    Exit code:
      0  the report is written; what could not be measured is named in it
      2  wrong use: a setting, the bundle or the data cannot be used
      3  no network reproduced its golden outputs on this box
    """
    with errors_told(NOTHING_KEPT):
        from cxrvit_edge import benchmark as b
        from cxrvit_edge.progress import StepLine

        options = b.Options(
            data=data,
            split=split,
            images=images,
            bundle=bundle,
            backends=tuple(backend or ("auto",)),
            precisions=tuple(precision or ("auto",)),
            seconds=seconds,
            reference=reference,
            out=out,
        )
        with StepLine(shown=not quiet and sys.stderr.isatty()) as line:
            report, observed = b.run(options, say=line.say if not quiet else lambda _: None, progress=line.update)
        written = b.write(report, observed, out)
        if as_json:
            _print_json(report)
        else:
            typer.echo("\n".join([*b.told(report), *(f"wrote {path}" for path in written)]))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", show_default=False)],
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="PATH", help="Films, folders of them, or a table of labels.")
    ] = None,
    split: SplitOption = "test",
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the comparison.")] = "compare-out",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two bundles, precisions, back ends or triage runs over the same films: order, flips, differences.

    A and B are each a precision (int8), a back end (openvino), both (openvino:int8), a bundle, a bundle with either
    (bundle-out@int8), or the output folder of a triage, of which nothing is run again. DIR then holds compare.html
    and compare.json. --data may be given several times; two output folders need none.

    \b
    Examples:
      cxrvit-edge compare fp32 int8 --data films/
      cxrvit-edge compare out-of-monday out-of-tuesday

    \b
    Exit code:
      0  the comparison is written, whatever it says
      2  wrong use: a side, a setting or the data cannot be used
      3  a network did not reproduce its golden outputs on this box
    """
    with errors_told(NOTHING_KEPT):
        from cxrvit_edge.compare import compare as compare_sides
        from cxrvit_edge.compare import told
        from cxrvit_edge.progress import StepLine

        with StepLine(shown=not quiet and sys.stderr.isatty()) as line:
            report = compare_sides(a, b, data=data or None, split=split, out=out, progress=line.update)
        if as_json:
            _print_json(report)
        else:
            typer.echo("\n".join([*told(report), f"wrote {out}/compare.html"]))


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", show_default=False)], as_json: JsonOption = False
) -> None:
    """Show what a radiograph, a bundle or an engine says of itself. No patient's name or ID is shown.

    \b
    Examples:
      cxrvit-edge inspect examples/phantom_normal_pa.png
      cxrvit-edge inspect bundle-out/ --json
      cxrvit-edge inspect bundle-out/engines/KEY
    """
    with errors_told():
        from cxrvit_edge.inspection import inspect_path

        _show(inspect_path(path), as_json)


@app.command()
def doctor(bundle: BundleOption = None, as_json: JsonOption = False) -> None:
    """Say what can run on this box, and why not the rest. Exit code 1 if triage cannot run.

    \b
    Example:
      cxrvit-edge doctor
    """
    with errors_told():
        from cxrvit_edge.doctor import examine

        report = examine(bundle)
        _show(report, as_json)
        if not report["ok"]:
            raise typer.Exit(FAILED)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"cxrvit-edge {version('cxrvit-edge')}")
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the command `cxrvit-edge`."""
    take_signals()
    app()


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    from cxrvit_edge.plain_text import lines

    typer.echo("\n".join(lines(report)))


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2))
