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


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", show_default=False)], as_json: JsonOption = False
) -> None:
    """Show what a radiograph, or a bundle, says of itself. No patient's name or ID is shown.

    \b
    Examples:
      cxrvit-edge inspect examples/phantom_normal_pa.png
      cxrvit-edge inspect bundle-out/ --json
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
