"""The command line: parses, calls, prints. What it does lives in the files that it calls."""

import dataclasses
import functools
import itertools
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nas_attn.cli_report import compare, report
from nas_attn.cli_retarget import retarget
from nas_attn.cli_search import import_own, search
from nas_attn.cli_simulate import simulate
from nas_attn.cli_storage import StorageUrl, hide_url, rebuild
from nas_attn.cli_verify import verify
from nas_attn.errors import GraphError, InputError, Interrupted, NasAttnError, printable, shown

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

_Usage: type[Exception] = typer.BadParameter.__mro__[2]  # ClickException, which Typer exports under no name of its own
DEMO_TRIALS = 14
SURE = 0.98  # claim.SURE, which comes with libraries that most commands do without

Data = Annotated[Path, typer.Option("--data", help="The data set's YAML, as for Ultralytics.")]
Study = Annotated[Path, typer.Argument(help="A study's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Rule = Annotated[str, typer.Option("--rule", help="best, fastest (that beats the base), knee or 1se (simplest in one standard error).")]
MaxRatio = Annotated[float | None, typer.Option("--max-latency-ratio", help="Only what is at most this slow, the base being 1.")]
Probability = Annotated[float, typer.Option("--probability", help="Only what beats the base this likely, 0.5 to 1; else the base.")]
Imports = Annotated[list[str] | None, typer.Option("--import", help="A module of yours whose @mechanism classes join the table.")]


def main() -> None:
    """Run the command line; errors become one line and an exit code, with a traceback under --debug."""
    hide_url()
    os.environ["YOLO_AUTOINSTALL"] = "false"  # read at Ultralytics' import; nothing is installed behind the user's back
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        code = app(prog_name="nas-attn", standalone_mode=False)
    except NasAttnError as error:
        _fail(error, error.exit_code, debug)
    except _Usage as error:
        _fail(_misused(error), InputError.exit_code, debug)
    except Exception as error:
        _fail(error, 1, debug)
    if isinstance(code, int) and code:
        raise SystemExit(code)


def _misused(error: Any) -> InputError:
    """What Typer has against a command line, on one line; without any argument it is the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        raise SystemExit(InputError.exit_code)
    command = error.ctx.command_path if getattr(error, "ctx", None) else "nas-attn"
    return InputError(f"{' '.join(error.format_message().split()).rstrip('.')}{_given(error)}; see `{command} --help`.")


def _given(error: Any) -> str:
    """The value of the option that is wrong, which not every version of Typer names."""
    names = getattr(getattr(error, "param", None), "opts", ())
    words = [word for argument in sys.argv[1:] for word in (argument.split("=", 1) if argument.startswith("--") else [argument])]
    values = [value for name, value in itertools.pairwise(words) if name in names]
    return f", but got {shown(values[-1])}" if values and values[-1] not in error.format_message() else ""


def _fail(error: Exception, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    label = "stopped" if isinstance(error, Interrupted) else "error"
    kind = "" if isinstance(error, NasAttnError) else f"{type(error).__name__}: "
    hint = "" if isinstance(error, NasAttnError) or debug else " (--debug shows where)"
    text = "\n".join(map(printable, str(error).split("\n")))
    errors.print(f"{label}: {kind}{text}{hint}", markup=False, soft_wrap=True)
    raise SystemExit(code)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """A command of the app, in which Ctrl-C is our own exit code."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            raise Interrupted("Stopped; run the same command again.") from None

    app.command()(wrapped)
    return function


@_command
def demo(
    out: Annotated[Path, typer.Option(help="Where data, study and export go.")] = Path("demo"),
    trials: Annotated[int, typer.Option(help="Architectures to measure, the base among them.")] = DEMO_TRIALS,
    pool: Annotated[str, typer.Option(help="ray or inline.")] = "ray",
) -> None:
    """The whole job on a small data set that draws itself, on a CPU, in minutes: search, report, pick, export, load."""
    from nas_attn import plan
    from nas_attn.demo import draw_data_set
    from nas_attn.spec import SpaceSpec

    plan.require_options(SpaceSpec.load("toy"), out, trials=trials, sampler="model", fidelity="full", pool=pool, workers=None)
    data = draw_data_set(out / "data")
    console.print(f"Drew a data set of handwritten digits: {data}")
    study = out / "study"
    search("toy", data=data, trials=trials, out=study, pool=pool, device="cpu")
    export(study, to=out / "export")
    _show_that_it_loads(out / "export")


@_command
def sites(
    base: Annotated[str, typer.Argument(help="A model YAML: yolo11n.yaml, or a file of your own.")],
    as_json: AsJson = False,
) -> None:
    """Where attention can go: name, row, module, channels, stride."""
    from nas_attn import detector, show

    detector.silence()
    found = detector.base_sites(base)[2]
    rows = [dataclasses.asdict(site) for site in found]
    columns = {"name": "names", "row": "layer", "module": "module", "channels": "channels", "stride": "stride"}
    show.rows(console, rows, columns, as_json)


@_command
def modules(
    as_json: AsJson = False,
    measure: Annotated[bool, typer.Option("--measure", help="Time every module on this machine's CPU, which takes a minute.")] = False,
    imports: Imports = None,
) -> None:
    """What can go there: hyperparameters, cost at three sizes, what an ONNX export can leave open, where it cannot go, paper."""
    from nas_attn import listing, show

    import_own(imports)
    found, where = listing.rows(), listing.machine()
    if measure:
        from nas_attn.speed import measure as timed

        found, where = listing.rows(timed([row["name"] for row in found])), "Measured on this machine's CPU."
    if as_json:
        show.rows(console, found, {}, as_json)
    else:
        show.mechanisms(console, found, where)


@_command
def check(
    model: Annotated[Path | None, typer.Argument(help="Any YOLO YAML.")] = None,
    scale: Annotated[str | None, typer.Option(help="The scale letter to check for; default: that of the file's name.")] = None,
    module: Annotated[str | None, typer.Option(help="Hold this attention module to the library's contract instead.")] = None,
    imports: Imports = None,
) -> None:
    """Lint a model YAML (references, attention that no head reads, channel arguments, unknown names), or hold an attention module to the
    contract of the library. Exit code 1 if anything is found.
    """
    from nas_attn.document import is_file, read_file
    from nas_attn.graph import lint_yaml
    from nas_attn.registration import names

    import_own(imports)
    if module is not None:
        from nas_attn import show

        if not show.conformance(console, module):
            raise typer.Exit(1)
        return
    if model is None or not is_file(model):
        raise InputError(f"`check` needs a file, but {model} is none; give the path of a model YAML, or --module NAME.")
    findings = lint_yaml(read_file(model, kind=GraphError), names(), scale)
    for finding in findings:
        console.print(printable(f"{model}: row {finding.row}: {finding.code}: {finding.message}"), markup=False, soft_wrap=True)
    if findings:
        raise typer.Exit(1)
    console.print(f"{model}: nothing found.", markup=False)


_command(search)


_command(report)


@_command
def pick(
    folder: Study, rule: Rule = "best", max_latency_ratio: MaxRatio = None, probability: Probability = SURE, storage: StorageUrl = None
) -> None:
    """One architecture of the study, or the base, and why."""
    from nas_attn import pick as chooser

    choice = chooser.pick(_load(folder, storage), rule, max_latency_ratio, probability=probability)
    console.print(f"trial {choice.trial.number}: {choice.trial.architecture}", markup=False, soft_wrap=True)
    console.print(choice.reason, markup=False, soft_wrap=True)


@_command
def export(
    folder: Study,
    to: Annotated[Path, typer.Option("--to", help="The folder to write.")],
    trial: Annotated[int | None, typer.Option(help="This trial instead of a rule's.")] = None,
    rule: Rule = "best",
    max_latency_ratio: MaxRatio = None,
    probability: Probability = SURE,
    scale: Annotated[str | None, typer.Option(help="Another scale letter; the export then has no weights.")] = None,
    storage: StorageUrl = None,
    imports: Imports = None,
) -> None:
    """A winner as Ultralytics YAML, weights, card and training script."""
    from nas_attn import detector
    from nas_attn import pick as chooser
    from nas_attn.export import export as write
    from nas_attn.plan import load_setup

    detector.silence()
    import_own(imports)
    snapshot = _load(folder, storage)
    if trial is None:
        choice = chooser.pick(snapshot, rule, max_latency_ratio, probability=probability)
    else:
        choice = chooser.by_number(snapshot, trial)
    exported = write(snapshot, load_setup(folder), choice.trial, to, scale=scale, reason=choice.reason)
    console.print(f"trial {choice.trial.number}: {choice.trial.architecture}\n{choice.reason}", markup=False, soft_wrap=True)
    console.print(f"Exported to {exported.folder}: {', '.join(sorted(f.name for f in exported.folder.iterdir()))}", markup=False)
    console.print(f"Next: nas-attn train {shlex.quote(str(to))} --data DATA.yaml epochs=100", markup=False)


@_command
def train(
    folder: Annotated[Path, typer.Argument(help="A folder that `nas-attn export` wrote.")],
    data: Data,
    settings: Annotated[list[str] | None, typer.Argument(help="Ultralytics' arguments: epochs=100 imgsz=640 device=0,1 ...")] = None,
    imports: Imports = None,
) -> None:
    """Train an export in full, from its weights, with all of Ultralytics' arguments."""
    from nas_attn.train import train_export

    import_own(imports)
    saved = train_export(folder, str(data), settings or [])
    console.print(f"Trained: {saved}", markup=False)


_command(compare)
_command(verify)
_command(simulate)
_command(rebuild)
_command(retarget)


def _load(folder: Path, storage: str | None) -> Any:
    from nas_attn.record import load_study

    return load_study(folder, storage)


def _show_that_it_loads(folder: Path) -> None:
    from nas_attn import detector

    file = next(folder.glob("*.yaml"))
    model = detector.load_model(file)
    console.print(f"The export loads: {file.name}, {sum(p.numel() for p in model.parameters()) / 1e6:.3f} M parameters.", markup=False)
