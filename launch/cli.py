"""The command line: parse, call, print.

The spec is the one home of what a sweep is; options here only say how to run it. Everything heavy
is imported inside commands, so that `--help` answers at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from launch import display
from launch.opening import TargetError
from launch.workplace import WorkplaceError, here

USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130
JOB_ADDRESS = "http://127.0.0.1:8265"

app = typer.Typer(
    name="aqr-sweep",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Hyperparameter sweeps for AQR-CMT: Ray runs them, Optuna remembers, MLflow shows.

A [bold]spec[/bold] is a YAML file that says all about a sweep; ready ones lie in sweeps/specs.
A [bold]sweep[/bold] is named by its directory, its spec, or its name below runs/.

[dim]A sweep from start to end:[/dim]
  aqr-sweep plan   sweeps/specs/quickstart.yaml
  aqr-sweep run    sweeps/specs/quickstart.yaml
  aqr-sweep ui     quickstart
  aqr-sweep export quickstart --out my_config.py
""".replace("\n  aqr-sweep", "\n\n  aqr-sweep"),
)

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep's YAML file.")]
Target = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep's directory, its spec, or its name.")
]
Plain = Annotated[bool, typer.Option("--plain", help="A line for each event, no live table.")]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="AQR_ADDRESS",
        help="A Ray cluster: its dashboard, usually http://HEAD:8265.",
    ),
]


@app.command()
def plan(spec: SpecPath) -> None:
    """Check a spec and show what it would run, without running anything.

    [dim]Example:[/dim]  aqr-sweep plan sweeps/specs/quickstart.yaml
    """
    with _explained():
        from launch.opening import open_spec
        from launch.plan import count_samples, measured_speed, render_plan

        with _busy("Loading the training config"):
            opened = open_spec(spec, here())
            num_samples = count_samples(opened)
            speed = measured_speed(opened.spec)
        console = display.output()
        console.print(render_plan(opened, speed, num_samples))
        console.print(f"Start it with  aqr-sweep run {spec}", style="dim")


@app.command()
def run(spec: SpecPath, plain: Plain = False) -> None:
    """Run a sweep on this machine, or on the cluster at RAY_ADDRESS.

    Ctrl-C is safe: nothing is lost, and [bold]resume[/bold] goes on.

    [dim]Example:[/dim]  aqr-sweep run sweeps/specs/quickstart.yaml
    """
    with _explained():
        from launch.opening import open_spec
        from launch.running import drive, refuse_existing

        with _busy("Loading the training config"):
            opened = open_spec(spec, here())
        refuse_existing(opened.spec)
        drive(opened, resume=False, plain=plain, console=display.output())


@app.command()
def resume(sweep: Target, plain: Plain = False) -> None:
    """Go on with a sweep that was interrupted or killed; no finished trial runs again.

    [dim]Examples:[/dim]

      aqr-sweep resume quickstart

      aqr-sweep resume runs/quickstart
    """
    with _explained():
        from launch.opening import open_sweep
        from launch.running import drive

        with _busy("Loading the training config"):
            opened = open_sweep(sweep, here())
        drive(opened, resume=True, plain=plain, console=display.output())


@app.command()
def submit(
    spec: SpecPath,
    address: Address = None,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory on the cluster where the spec's relative paths lead: data, checkpoints,"
            " results. [default: the current directory, which the cluster should share]",
        ),
    ] = None,
    python: Annotated[str, typer.Option(help="Interpreter on the cluster.")] = "python",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show the job's output until it ends.")
    ] = True,
) -> None:
    """Send a sweep to a Ray cluster as a job, and follow it.

    The code travels with the job; data, checkpoints and results stay on the file system that the
    cluster shares. Ctrl-C stops following, not the job.

    [dim]Examples:[/dim]

      aqr-sweep submit sweeps/specs/quickstart.yaml --address http://HEAD:8265

      aqr-sweep submit my.yaml --address http://HEAD:8265 --root /shared/me --no-follow
    """
    with _explained():
        from launch import cluster

        cluster.submit(
            display.output(),
            spec_path=spec,
            address=address or JOB_ADDRESS,
            root=root or Path.cwd(),
            python=python,
            resume=resume,
            follow=follow,
        )


@app.command()
def status(
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="[SWEEP|JOB]",
            help="A sweep's directory, spec or name; with --address also a job's id. Nothing: all"
            " jobs of the cluster.",
        ),
    ] = None,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the job's output until it ends.")
    ] = False,
) -> None:
    """Show how far a sweep is: here, or with --address as a job of a cluster.

    [dim]Examples:[/dim]

      aqr-sweep status quickstart

      aqr-sweep status quickstart --address http://HEAD:8265
    """
    with _explained():
        if address is not None:
            from launch import cluster

            cluster.show(display.output(), target=sweep, address=address, follow=follow)
            return
        if sweep is None or follow:
            raise TargetError("Name a sweep, or a cluster with --address.")
        from launch.results import show_status

        show_status(display.output(), sweep, here())


@app.command()
def stop(sweep: Target, address: Address = None) -> None:
    """Stop a sweep: its driver on this machine, or with --address its job. resume goes on later.

    [dim]Examples:[/dim]

      aqr-sweep stop quickstart

      aqr-sweep stop quickstart --address http://HEAD:8265
    """
    with _explained():
        if address is not None:
            from launch import cluster

            cluster.stop(display.output(), target=sweep, address=address)
        else:
            from launch.running import stop_driver

            stop_driver(display.output(), sweep, here())


@app.command()
def report(sweep: Target) -> None:
    """Write the report and the leaderboard anew, and show the leaderboard.

    Sends to MLflow what had not arrived there. Works while a sweep runs, too.

    [dim]Example:[/dim]  aqr-sweep report quickstart
    """
    with _explained():
        from launch.results import rewrite_report

        rewrite_report(display.output(), sweep, here())


@app.command()
def export(
    sweep: Target,
    trial: Annotated[
        str, typer.Option(metavar="best|control|N", help="The best trial, or one by its number.")
    ] = "best",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="[default: in the sweep's directory]"),
    ] = None,
) -> None:
    """Write a trial as a training config, with the proof of where it comes from.

    [dim]Examples:[/dim]

      aqr-sweep export quickstart

      aqr-sweep export quickstart --trial 7 --out my_config.py
    """
    with _explained():
        from launch.results import export_trial

        with _busy("Loading the training config"):
            text = export_trial(sweep, here(), trial=trial, out=out)
        display.output().print(text)


@app.command(name="import")
def import_(
    logs: Annotated[
        list[Path],
        typer.Argument(metavar="LOG...", help="Training logs of mmcv: .log or .log.json."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")] = Path(
        "known.yaml"
    ),
    metric: Annotated[str, typer.Option(metavar="NDS|mAP", help="The score to take.")] = "NDS",
) -> None:
    """Read runs by hand from their training logs, as known points for a spec.

    [dim]Example:[/dim]  aqr-sweep import work_dirs/cmt_aqr/20251012.log --out known.yaml
    """
    with _explained():
        from launch.importing import import_logs

        import_logs(display.output(), logs, out=out, metric=metric)


@app.command()
def schema() -> None:
    """Print a JSON schema of specs, for editors that complete and check YAML.

    [dim]Example:[/dim]  aqr-sweep schema > sweep.schema.json
    """
    import json

    from launch.knobs import load_knobs
    from sweeps.schema import spec_schema

    typer.echo(json.dumps(spec_schema(load_knobs()), indent=2))


@app.command()
def ui(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="[SWEEP]", help="A sweep's directory, spec or name, or a storage path."
        ),
    ] = "runs",
    port: Annotated[int, typer.Option(help="Another one is taken if it is in use.")] = 5000,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
) -> None:
    """Open MLflow's UI on the sweeps of a storage path until Ctrl-C.

    [dim]Examples:[/dim]

      aqr-sweep ui

      aqr-sweep ui quickstart --port 5001
    """
    with _explained():
        from launch.results import serve_ui

        serve_ui(display.output(), sweep, here(), host=host, port=port)


@contextmanager
def _busy(text: str) -> Iterator[None]:
    """A spinner while the training stack loads, on the error stream so that output stays clean."""
    console = display.errors()
    with console.status(f"[dim]{text} ...", spinner_style="dim"):
        yield


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors that users can act on into a sentence and an exit code; let others through."""
    try:
        yield
    except (TargetError, WorkplaceError) as error:
        _give_up(str(error), USAGE_ERROR)
    except (ValueError, RuntimeError, KeyboardInterrupt) as error:
        from launch.failures import explain

        explained = explain(error)
        if explained is None:
            raise
        _give_up(explained.text, explained.code)


def _give_up(text: object, code: int) -> None:
    display.errors().print(text, markup=False)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
