"""The command line, `rewardtune`."""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from deploy.cli_config import ConfigPath, Overrides, read_config
from deploy.cli_output import AsJson, console, friendly, print_metrics
from deploy.doctor.command import doctor
from deploy.environment import add_working_directory_to_path, compilation_cache
from deploy.learn_command import learn
from deploy.plan_command import plan
from deploy.run_directory import check_outlives_job
from deploy.scale_command import scale
from deploy.score_commands import score_app
from deploy.serve_commands import serve_app
from deploy.simulation.command import simulate_runs
from deploy.soak.command import soak
from deploy.status_command import status
from deploy.submit_command import submit
from deploy.work_command import work_app

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Tunes vision models with task rewards: actors sample, rewards score, a learner trains.",
)
app.add_typer(score_app, name="score")
app.add_typer(serve_app, name="serve")
app.add_typer(work_app, name="work")

Overwrite = Annotated[bool, typer.Option(help="Remove what the run's directory holds, and start.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show tracebacks and debug logs.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    add_working_directory_to_path()
    os.environ.update(compilation_cache())


@app.command()
@friendly
def config(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print a config resolved and checked; start nothing."""
    resolved = read_config(config, overrides)
    print(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), end="")


@app.command()
@friendly
def pretrain(config: ConfigPath, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Train a model by maximum likelihood (Algorithm 1)."""
    from deploy.runs import run_pretrain

    resolved = read_config(config, overrides)
    check_outlives_job(resolved.runs)
    path = run_pretrain(resolved, overwrite)
    print_metrics("held-out metrics", json.loads((path.parent / "evaluation.json").read_text()))
    console.print(f"checkpoint: {path}")


@app.command()
@friendly
def tune(config: ConfigPath, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Tune a model with rewards on Ray (Algorithm 2); run again to resume."""
    from deploy.runs import run_tune

    resolved = read_config(config, overrides)
    check_outlives_job(resolved.runs)
    run_tune(resolved, overwrite)
    console.print(
        f"finished; `rewardtune report {resolved.runs / resolved.name}` shows before and after"
    )


@app.command()
@friendly
def evaluate(
    config: ConfigPath,
    overrides: Overrides = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A .npz; default: the config's `initial`.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    end_token_bias: Annotated[
        float, typer.Option(help="Added to the end token's logit: below 0 finds more boxes.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Metrics of a checkpoint on a split, by greedy decoding."""
    from deploy.config_file import ConfigError
    from deploy.runs import run_evaluate

    resolved = read_config(config, overrides)
    path = checkpoint or resolved.initial
    if path is None:
        raise ConfigError("no checkpoint: name one with --checkpoint, or set `initial`")
    metrics = run_evaluate(resolved, path, split, end_token_bias)
    print_metrics(f"{path} on {split}", metrics, as_json)


@app.command()
@friendly
def report(
    run: Annotated[Path, typer.Argument(help="A run's directory, runs/NAME.")],
    split: Annotated[str, typer.Option(help="The split to report on.")] = "test",
) -> None:
    """Write runs/NAME/report.html: before and after, in numbers and pictures."""
    from deploy.report import write_report

    path = write_report(run, split=split, progress=lambda line: console.print(line))
    console.print(f"report: {path}")


@app.command()
@friendly
def analyze(
    run: Annotated[Path, typer.Argument(help="A run's directory, runs/NAME.")],
    split: Annotated[str, typer.Option(help="The split to sample on.")] = "test",
    samples: Annotated[int, typer.Option(min=1, help="N, drawn for each example.")] = 8,
    examples: Annotated[
        int, typer.Option(min=1, help="Examples, evenly spaced over the split.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Reward before and after: quantiles, best and most likely of N; reward against metric."""
    from deploy.report.analyze import analyze_run
    from deploy.report.show import show_analysis

    told = Console(stderr=True)
    analysis = analyze_run(run, split, samples, examples, lambda line: told.print(line))
    if as_json:
        print(json.dumps(analysis.to_json(), indent=1))
    else:
        show_analysis(console, analysis)
        console.print(f"all figures: {run / 'analysis.json'}, drawn: {run / 'analysis.png'}")


@app.command()
@friendly
def gc(
    url: Annotated[str, typer.Option(help="Redis, such as redis://HOST:6379/0.")],
    run: Annotated[
        str | None, typer.Option(help="The run to remove; without it, runs are listed.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Even if the run is at work.")] = False,
    password_env: Annotated[
        str | None, typer.Option(help="Environment variable with the password.")
    ] = None,
    password_file: Annotated[Path | None, typer.Option(help="File with it.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="PEM certificates to check against.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove a run's queue from Redis, or list those that are there."""
    from deploy.config_file import validate_config
    from deploy.queues import remove_queue, stored_queues
    from replay.pacing import PacingConfig

    given: dict[str, Any] = {"url": url, "password_env": password_env}
    given |= {"password_file": password_file, "ca_file": ca_file}
    where = validate_config(given, [], PacingConfig, "gc")
    if run is not None:
        console.print(f"removed {run}: {remove_queue(where, run, force)} keys")
        return
    runs = stored_queues(where)
    if as_json:
        print(json.dumps(runs, indent=1))
        return
    table = Table("run", "at work", "groups out", "acknowledged", "MB", "of")
    for stored in runs:
        cells = (stored["groups"], stored["acked"], f"{stored['memory'] / 1e6:.1f}")
        table.add_row(
            stored["name"], "yes" if stored["at_work"] else "", *map(str, cells), stored["owner"]
        )
    console.print(table)


@app.command()
@friendly
def demo(
    steps: Annotated[int | None, typer.Option(help="Fewer or more tuning steps.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "demo",
    overwrite: Overwrite = True,
) -> None:
    """Tune the shipped detector for mAP, and write the report: some five minutes on 2 cores."""
    from deploy.report import write_report
    from deploy.runs import run_evaluate, run_tune

    overrides = [f"name={name}"] + ([f"learner.steps={steps}"] if steps else [])
    resolved = read_config("configs/quickstart/detection_map.yaml", overrides)
    assert resolved.initial is not None
    console.print("The detector as maximum likelihood left it, on held-out test scenes:")
    print_metrics("before", run_evaluate(resolved, resolved.initial, "test"))
    console.print("Tuning it with the mAP reward on Ray:")
    run_tune(resolved, overwrite)
    print_metrics("after", run_evaluate(resolved, resolved.directory / "final.npz", "test"))
    path = write_report(resolved.directory, progress=lambda line: console.print(line))
    console.print(f"report with pictures: {path}")


app.command()(friendly(learn))
app.command()(friendly(status))
app.command()(friendly(plan))
app.command()(friendly(doctor))
app.command()(friendly(scale))
app.command()(friendly(soak))
app.command()(friendly(submit))
app.command("simulate")(friendly(simulate_runs))


def main() -> None:
    """Entry point."""
    # Ray's start-up forks and at once executes another program, which is safe beside JAX's threads.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    app()


if __name__ == "__main__":
    main()
