from __future__ import annotations

from pathlib import Path

import click

from lcmmerge.cli.common import output_options
from lcmmerge.extras import check_installed
from lcmmerge.output import Output, size


@click.command(short_help="Check an export's graphs without running them.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tensorrt", is_flag=True, help="Have TensorRT-RTX parse and build them too; it needs no GPU.")
@output_options
def check(folder: Path, tensorrt: bool, output: Output) -> None:
    """Check the graphs of FOLDER: an export, any folder of ONNX files, or one file.

    Every graph is valid ONNX; its parameters are where it says, in its own folder, under their names; it has no
    operator that we do not emit, no control flow, no sequence, no float64, no number that int32 does not hold; and the
    profiles cover every free axis. What breaks a rule is named, and the exit code is then 3.

    \b
      lcmmerge check merged-onnx
      lcmmerge check merged-onnx --tensorrt
    """
    check_installed("export", *(["tensorrt-rtx"] if tensorrt else []))
    from lcmmerge.export.check import check as run

    report = run(folder, output, tensorrt=tensorrt)
    if output.as_json:
        output.json(report.as_dict())
    rows = [(engine.graph, f"{engine.seconds:.1f} s", size(engine.nbytes)) for engine in report.engines]
    output.table("Built by TensorRT-RTX", ("graph", "time", "engine"), rows, numbers=2)
    report.check()
    built = " TensorRT-RTX takes them." if tensorrt else ""
    output.text(f"{folder}: {len(report.graphs)} graphs keep every rule.{built}")
