"""The command line: one function a verb, no logic in it. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Annotated, Any, NoReturn

import typer

from cxrvit_edge.errors import CxrVitError, ParityError

FAILED, WRONG_USE, NO_PARITY, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

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
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"
    torch = "torch"


class Precision(str, Enum):
    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


BundleOption = Annotated[
    str | None, typer.Option("--bundle", metavar="DIR", help="Bundle folder or .zip; the embedded one by default.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def triage(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", show_default=False)],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the results.", show_default=False)],
    bundle: BundleOption = None,
    backend: Annotated[Backend, typer.Option(help="What runs the network.")] = Backend.auto,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the network.")] = Precision.auto,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images a batch; by default what is ready.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads that read files; by default one a core.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop the results that are in DIR and start anew.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Repeat the check against the golden outputs.")] = False,
    views: Annotated[
        str | None, typer.Option(metavar="FILE.csv", help="Columns file,view: comes before what headers say.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but errors.")] = False,
) -> None:
    """Read chest radiographs and write a worklist, most urgent first.

    PATH is a DICOM, PNG, JPEG, TIFF or BMP file, or a folder that is searched for them; hidden files are left out.
    DIR then holds results.jsonl, worklist.csv and report.html. Run again, it goes on where it was.

    \b
    Example:
      cxrvit-edge triage examples/ --out triage-out

    \b
    Exit code:
      0  every input got a result or a rejection
      1  some inputs failed; they are on the worklist, and are tried again next time
      2  wrong use: a setting, a bundle or the output folder cannot be used
      3  the network did not reproduce its golden outputs on this box, and was not used
    """
    with _errors_told():
        from cxrvit_edge import discover
        from cxrvit_edge.progress import ProgressLine, told
        from cxrvit_edge.triage import Triage

        discover.require(paths, out)
        engine = Triage.open(
            bundle,
            backend=backend.value,
            precision=precision.value,
            batch_size=batch_size,
            workers=workers,
            verify=verify,
            views=views,
        )
        with ProgressLine(paths, out, shown=not quiet and sys.stderr.isatty()) as line:
            summary = engine.run(paths, out, fresh=fresh, progress=line.update)
        if not quiet:
            typer.echo(told(summary), err=True)
        if as_json:
            _print_json(summary.to_dict())
        if summary.failures:
            raise typer.Exit(FAILED)


class EngineBackend(str, Enum):
    auto = "auto"
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
        list[str] | None, typer.Option("--precision", metavar="P", help="fp16 or int8; by default all there are.")
    ] = None,
    backend: Annotated[EngineBackend, typer.Option(help="What compiles.")] = EngineBackend.auto,
    batch_size: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Largest batch.")] = 4,
    require_fused_attention: Annotated[bool, typer.Option(help="Take no engine whose attention is not fused.")] = True,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Compile even what is there already.")] = False,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but errors.")] = False,
) -> None:
    """Compile the bundle's GPU variants to engines, and prove them on this box's GPU where there is one.

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
    with _errors_told():
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
    with _errors_told():
        from cxrvit_edge.inspection import inspect_path

        _show(inspect_path(path), as_json)


@app.command()
def doctor(bundle: BundleOption = None, as_json: JsonOption = False) -> None:
    """Say what can run on this box, and why not the rest. Exit code 1 if triage cannot run.

    \b
    Example:
      cxrvit-edge doctor
    """
    with _errors_told():
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
    signal.signal(signal.SIGTERM, _terminate)
    app()


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends as an interrupt from the keyboard does."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


@contextmanager
def _errors_told() -> Iterator[None]:
    """Errors of ours as one line on stderr and the exit code of the contract."""
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo("stopped: what is done is kept; run again to go on", err=True)
        raise typer.Exit(TERMINATED if isinstance(error, _Terminated) else INTERRUPTED) from None
    except CxrVitError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(NO_PARITY if isinstance(error, ParityError) else WRONG_USE) from None


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    from cxrvit_edge.plain_text import lines

    typer.echo("\n".join(lines(report)))


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2))
