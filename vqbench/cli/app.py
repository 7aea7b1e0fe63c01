"""The command line: options become one frozen request, which goes to a plain function.

Nothing heavy is imported before a command needs it, so that `--help` and completion answer at once.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqbench import arguments
from vqbench.cli.compare import compare
from vqbench.cli.export import export
from vqbench.cli.options import AsJson, Typed, complete_methods, print_rows, takes, takes_some
from vqbench.cli.report import report
from vqbench.cli.tokens import decode, tokens
from vqbench.errors import UsageError, VQBenchError, remedy, require_utf8, unknown
from vqbench.machine import interrupts, streams
from vqbench.machine.home import working_folder
from vqbench.planning.request import OF_TRAINING, AblateRequest, EvalRequest, RunRequest
from vqbench.registry import DATASETS, METHODS, add_plugin
from vqbench.sweeps.request import SweepRequest, asked_sweep
from vqbench.wording import counted, masked, reason_of_library

if TYPE_CHECKING:
    from vqbench.planning.plan import Resolved

app = typer.Typer(
    name="vqbench",
    help="Compare vector-quantization image tokenizers on equal terms.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(asked: bool) -> None:
    if asked:
        from vqbench.version import __version__

        print(f"vqbench {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    working_folder()
    for path in filter(None, os.environ.get("VQBENCH_PLUGINS", "").split(os.pathsep)):
        try:
            add_plugin(Path(path))
        except UsageError as error:  # it was not named in this command, so it must not stop it
            streams.say(f"warning: VQBENCH_PLUGINS: {error.what}")


def _of_methods(help_text: str) -> Any:
    return typer.Option(metavar="LIST", envvar="VQBENCH_METHODS", autocompletion=complete_methods, help=help_text)


@app.command()
@takes(RunRequest)
def run(
    options: Typed,
    methods: Annotated[
        list[str],
        _of_methods("Methods to compare, NAME or NAME@PRESET, between commas or repeated; or ALL."),
    ],
) -> None:
    """Train and compare methods: the same images, order, budget, backbone and losses for all."""
    from vqbench.planning.plan import check_request

    asked = check_request(options.run(methods))
    _show_plan(asked, options.as_json, options.probe) if options.dry_run else _run(asked, options.as_json)


@app.command("eval")
@takes(EvalRequest, RunRequest, without=(*OF_TRAINING, "split", "probe"))
def evaluate(
    options: Typed,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A checkpoint, a diffusers folder, adapter.py:function, images:RECONSTRUCTIONS[,ORIGINALS], a "
            "finished cell's folder or its weights; NAME=SOURCE names its row.",
        ),
    ],
) -> None:
    """Score tokenizers that are trained already, whoever trained them, under one protocol."""
    from vqbench.running.evaluate import check_evaluation

    request = EvalRequest(options.run([Path(source) for source in sources]), **options.fields[EvalRequest])
    asked = check_evaluation(request)
    _show_plan(asked, options.as_json) if options.dry_run else _run(asked, options.as_json, "eval")


@app.command()
@takes(AblateRequest, RunRequest)
def ablate(
    options: Typed,
    method: Annotated[
        str, typer.Argument(metavar="METHOD", autocompletion=complete_methods, help="NAME or NAME@PRESET.")
    ],
) -> None:
    """Switch components of a method off, one row each: what is a component worth?"""
    from vqbench.cli.terminal import TerminalView, print_ablation
    from vqbench.planning.ablation_rows import make_rows
    from vqbench.running.ablate import execute_ablation
    from vqbench.running.run import make_tracker

    request = arguments.asked(AblateRequest, run=options.run(method), **options.fields[AblateRequest])
    if options.dry_run:
        _, trained, left_out = make_rows(request)
        for note in left_out:
            streams.say(f"note: {note}")
        _show_plan(trained, options.as_json, options.probe)
        return
    with TerminalView() as view:
        ablation = execute_ablation(request, view, make_tracker(request.run))
    if options.as_json:
        from vqbench.reports.ablation import objects

        print_rows(objects(ablation.rows))
    else:
        print_ablation(ablation)
    if ablation.outcome.failed:
        raise typer.Exit(1)


@app.command()
@takes(SweepRequest, RunRequest)
def sweep(
    options: Typed,
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHODS", autocompletion=complete_methods, help="NAME or NAME@PRESET, between commas."),
    ] = None,
    resume: Annotated[
        str, typer.Option(metavar="NAME", help="Go on with a sweep; what defines it is remembered.")
    ] = "",
) -> None:
    """Search for good settings of each method, with the same number of trials for all."""
    from vqbench.cli.terminal import TerminalView, print_sweep
    from vqbench.running.run import make_tracker
    from vqbench.sweeps.sweep import execute_sweep

    request = asked_sweep(options.run(methods), options.fields[SweepRequest], resume)
    if options.dry_run:
        _show_sweep_plan(request, options.as_json, options.probe)
        return
    with TerminalView() as view:
        report = execute_sweep(request, view, make_tracker(request.run))
    if options.as_json:
        print_rows(report.rows)
    else:
        print_sweep(report)
    if report.without_best:
        raise typer.Exit(1)


def _show_sweep_plan(request: SweepRequest, as_json: bool, with_costs: bool) -> None:
    from vqbench.cli.terminal import TerminalView
    from vqbench.cli.terminal_plans import print_estimates, print_sweep_costs, print_sweep_plan
    from vqbench.planning.estimate import is_large
    from vqbench.sweeps.costs import count_sweep, probe_sweep
    from vqbench.sweeps.forecast import describe_studies, forecast
    from vqbench.sweeps.sweep import plan_sweep

    with TerminalView() as view:
        plan = plan_sweep(request, view, dry=not with_costs)
        for note in plan.notes:
            view.note(note)
        found = forecast(plan, guess=with_costs or is_large(plan.base.recipe))
        costs = probe_sweep(plan, found, view) if with_costs else None
        counted = {} if with_costs else count_sweep(found, plan.request.title)
    studies = describe_studies(plan, found)
    if as_json:
        of_costs = costs.as_dicts() if costs is not None else {}
        shares: dict[str, dict[str, Any]] = {name: {"cost": share} for name, share in of_costs.items()}
        shares |= {name: {"estimate": [end.as_dict() for end in ends]} for name, ends in counted.items()}
        print_rows(study | shares.get(study["study"], {}) for study in studies)
    else:
        print_sweep_plan(studies, plan)
        if costs is not None:
            print_sweep_costs(costs)
        print_estimates([end for ends in counted.values() for end in ends])
    if costs is not None and costs.failed:
        raise typer.Exit(1)


def _run(asked: Resolved, as_json: bool, kind: str = "run") -> None:
    from vqbench.cli.terminal import TerminalView, print_comparison
    from vqbench.running.run import execute, make_tracker

    with TerminalView() as view:
        outcome = execute(asked, view, make_tracker(asked.request), kind=kind)
    if as_json:
        print_rows(outcome.rows)
    else:
        print_comparison(outcome)
    if outcome.failed:
        raise typer.Exit(1)


def _show_plan(asked: Resolved, as_json: bool, with_costs: bool = False) -> None:
    from vqbench.cli.terminal import TerminalView
    from vqbench.cli.terminal_plans import print_costs, print_estimates, print_plan
    from vqbench.planning.estimate import estimates
    from vqbench.running.execution import row_of
    from vqbench.running.pricing import probe_costs
    from vqbench.running.run import prepare_plan

    with TerminalView() as view:
        plan = prepare_plan(asked, view, dry=not with_costs)  # a probe needs the weights that a run needs
        costs = probe_costs(asked.request, plan, view) if with_costs else None
        waiting = [cell for cell in plan.cells if asked.request.rerun or cell.state != "cached"]
        counted = estimates(waiting) if costs is None else []
    if as_json:
        by_label = {known.label: {"estimate": known.as_dict()} for known in counted}
        of_each = [by_label.get(cell.label, {}) if cell in waiting else {} for cell in plan.cells]
        if costs is not None:
            of_each = [{"cost": cost.as_dict()} for cost in costs.cells]
        print_rows(row_of(cell, cell.state) | known for cell, known in zip(plan.cells, of_each, strict=True))
    else:
        print_plan(plan)
        if costs is not None:
            print_costs(costs)
        print_estimates(counted)
    if costs is not None and costs.failed:
        raise typer.Exit(1)


@app.command("methods")
@takes_some("plugins")
def list_methods(as_json: AsJson = False) -> None:
    """List the methods: name, paper, components, where they come from."""
    from vqbench.cli.terminal_lists import print_outlines

    outlines = [*map(METHODS.outline, METHODS.names()), *METHODS.families()]
    if as_json:
        print_rows(map(dataclasses.asdict, outlines))
    else:
        print_outlines("method", outlines, with_components=True)


@app.command("datasets")
@takes_some("plugins")
def list_datasets() -> None:
    """List the datasets and where they come from."""
    from vqbench.cli.terminal_lists import print_outlines

    print_outlines("dataset", [DATASETS.outline(name) for name in DATASETS.names()], with_components=False)


@app.command("metrics")
@takes_some("plugins")
def list_metrics() -> None:
    """List the metrics: name, title and better direction, what they are, where they come from."""
    from vqbench.cli.terminal_lists import print_metrics

    print_metrics()


@app.command("recipes")
def list_recipes() -> None:
    """List the recipes."""
    from vqbench.cli.terminal_lists import print_recipes
    from vqbench.recipe import load_recipe, recipe_names

    print_recipes([load_recipe(name) for name in recipe_names()])


@app.command()
@takes_some("plugins")
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="A method or a recipe.")]) -> None:
    """Show every field of a method or a recipe: type, default, meaning; and the components that can be dropped."""
    from vqbench.cli.terminal_lists import print_method, print_recipe
    from vqbench.recipe import recipe_names

    if name in recipe_names() or name.endswith((".yaml", ".yml")):
        print_recipe(name)
        return
    if name not in METHODS:
        known = [*METHODS.names(), *recipe_names()]
        raise unknown("method or recipe", name, known, "`vqbench methods` and `vqbench recipes` list them")
    print_method(name)


@app.command()
@takes_some("plugins", "family", "trust")
def check(
    method: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE|SOURCE",
            help="A method's name, a file that registers one, or a tokenizer that is trained already, as for eval.",
        ),
    ],
    family: str = "",
    trust: bool = False,
) -> None:
    """Hold a method, or a tokenizer that is trained already, to its contract; one line per property."""
    from vqbench.planning.source_choice import names_source
    from vqbench.pretrained.opening import refuse_idle_options

    if not method.endswith(".py") and names_source(method):
        _check_source(method, family, trust)
        return
    refuse_idle_options([], family, trust)
    names: tuple[str, ...] = (method,)
    if method.endswith(".py"):
        names = add_plugin(Path(method))[METHODS.kind]
        if not names:
            raise UsageError(f"{method} registers no method", 'decorate a class with @METHODS.register("name")')
    from vqbench.checks.suite import check_method, render
    from vqbench.cli.terminal import print_text

    failed = False
    for name in names:
        properties = check_method(name, METHODS.file_of(name))
        print_text(f"{name}\n{render(properties)}")
        failed |= any(p.passed is False for p in properties)
    if failed:
        raise typer.Exit(1)


def _check_source(source: str, family: str, trust: bool) -> None:
    from vqbench.checks.suite import render
    from vqbench.cli.terminal import print_text
    from vqbench.pretrained.conformance import check_source
    from vqbench.pretrained.opening import open_alone

    opened = open_alone(source, family, trust)
    properties = check_source(opened)
    print_text(f"{opened.facts.name}: {opened.facts.in_words()}\n{render(properties)}")
    if any(p.passed is False for p in properties):
        raise typer.Exit(1)


_PREPARED = ("dataset", "data_root", "recipe", "settings", "plugins", "validation_images", "holdout", "resize",
             "resize_scale", "small", "split_list", "metrics", "format", "lpips", "inception_weights",
             "lpips_weights", "protocol_name")  # fmt: skip


@app.command()
@takes_some(*_PREPARED)
def prepare(
    dataset: str,
    methods: Annotated[list[str] | None, _of_methods("Methods whose codebook is made of the data; or ALL.")] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Processes that decode here; other machines may share the work.")
    ] = 1,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Make nothing: compare what is kept with what was written, and with the files."),
    ] = False,
    **options: Any,
) -> None:
    """Check and cache the data and weights that a run needs, before a machine goes offline."""
    from vqbench.cli.terminal import TerminalView, print_text
    from vqbench.planning.preflight import prepare_everything, verify_everything

    if verify and workers != 1:
        raise UsageError(f"--verify reads with all cores, not with {workers} workers", "leave --workers out")
    request = arguments.asked(RunRequest, methods=methods, dataset=dataset, workers=workers, **options)
    with TerminalView() as view:
        if verify:
            lines = verify_everything(request, view.preparing)
        else:
            lines = prepare_everything(request, view.note, view.preparing)
    print_text("\n".join(lines))


@app.command()
@takes_some("inception_weights", "lpips_weights")
def doctor(inception_weights: Path | None = None, lpips_weights: Path | None = None) -> None:
    """Look at this machine: device, versions, weights, and metric values with known answers."""
    from vqbench.checks.doctor import diagnose, exit_status, render
    from vqbench.cli.terminal import print_text

    findings = diagnose(inception_weights, lpips_weights)
    print_text(render(findings))
    if code := exit_status(findings):
        raise typer.Exit(code)


app.command()(compare)
app.command()(report)
app.command()(tokens)
app.command()(decode)
app.command()(export)


@app.command()
@takes_some("runs")
def sync(runs: Path = Path("runs")) -> None:
    """Send to MLflow what it missed while it was away."""
    from vqbench.tracking.server import tracking_uri
    from vqbench.tracking.tracker import sync as send

    if not runs.is_dir():
        raise UsageError(f"there is no runs directory {runs}", "give the one that holds your results: --runs DIR")
    try:
        report = send(runs)
    except VQBenchError:
        raise
    except Exception as error:
        uri = tracking_uri(runs)
        what = f"no tracking server at {masked(uri)}: {reason_of_library(error, uri)}"
        raise UsageError(what, "look at MLFLOW_TRACKING_URI") from None
    print(f"{counted(report.cells, 'cell')} up to date at {masked(tracking_uri(runs))}")
    for note in report.notes:
        streams.say(f"note: {note}")
    for problem in report.problems:
        streams.say(f"not sent: {problem}")
    if report.problems:
        raise typer.Exit(1)


@app.command()
@takes_some("runs")
def ui(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The experiment to open; by default the newest.")
    ] = None,
    runs: Path = Path("runs"),
    port: Annotated[int, typer.Option(metavar="PORT", help="On 127.0.0.1; 0 takes a free one.")] = 5000,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser, from a terminal.")] = True,
) -> None:
    """Open MLflow's own page on the results: runs as a table, curves of all methods; Ctrl-C ends it."""
    from vqbench.tracking.ui import serve

    serve(runs, port, name, browser)


def _report(what: str, hint: str) -> None:
    streams.say(f"error: {what}\nhint: {hint}")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors become two lines and an exit code (2 usage, 1 a failed cell, 130 Ctrl-C, 143 SIGTERM).

    1 is also the code of a command whose answer could not be printed; what it trained or wrote is in its place.
    """
    streams.open_standard()
    interrupts.hear()
    words = sys.argv[1:] if arguments is None else arguments
    code = _exit_code(lambda: app(args=words, prog_name="vqbench", standalone_mode=False), words)
    problem = streams.lost()
    if problem is not None:
        if problem.errno != errno.EPIPE:  # whoever reads has seen enough, as `| head` does
            _report(
                f"the answer could not be printed to standard output: {problem.strerror}",
                "nothing else is lost: the same command with another output (`> FILE`) prints it",
            )
        code = code or 1
    gc.freeze()  # the end of the process: nothing is looked through for cycles once more, which takes a second
    sys.exit(code)


# click's classes, whether typer brings them itself or imports them
_BadUsage: Any = typer.BadParameter.__base__
_ClickError: Any = _BadUsage.__base__


_OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO),
    *(errno.ENAMETOOLONG, errno.EMFILE, errno.EFBIG),
}
"""What a disk says that is full, broken, not ours to write to or asked for too much: no fault of vqbench."""


def _exit_code(call: Callable[[], Any], arguments: list[str]) -> int:
    try:
        for argument in arguments:
            require_utf8(argument)  # a command is recorded as it was typed
        code = call()
        if code == 130:  # typer's own answer to Ctrl-C
            raise KeyboardInterrupt
        return int(code) if isinstance(code, int) else 0
    except _ClickError as error:
        return _report_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        _report(interrupts.reason(), "the same command goes on from the last checkpoint")
        return interrupts.exit_code()
    except Exception as error:
        if "--debug" in arguments:
            streams.say("".join(traceback.format_exception(error)).rstrip())
            return 1
        if isinstance(error, VQBenchError):
            _report(error.what, error.hint)
            return error.exit_code
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            where = f" ({error.filename})" if error.filename else ""
            hint = f"{remedy(error)}, then give the same command again: it goes on where it was"
            _report(f"{error.strerror}{where}", hint)
        else:
            hint = "this is a bug of vqbench; `vqbench --debug …` shows the traceback"
            _report(f"{type(error).__name__}: {error}", hint)
        return 1


def _report_usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 2
    command = context.command_path if context is not None else "vqbench"
    _report(error.format_message().replace("\n", " ").rstrip("."), f"`{command} --help` lists the options")
    return 2
