"""The command line: each command a thin layer over the public function of the same name.

Dask is imported by the commands that need it, so that help and completion come at once.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

import hepdask
from hepdask import logs as logging_setup
from hepdask.config import Config, ModelName, load_config
from hepdask.config.document import read_value
from hepdask.errors import ConfigError, HepdaskError, OutputError
from hepdask.files.outputs import in_words

if TYPE_CHECKING:
    from hepdask.clusters import BatchSettings

logger = logging.getLogger(__name__)


def main() -> None:
    """Run a command; exit with 0 when done, 1 when it failed, 2 for wrong usage or configuration."""
    tracebacks = any(word.startswith("-vv") for word in sys.argv) or sys.argv.count("-v") > 1
    logging_setup.set_program(tracebacks)
    logging_setup.show_in_command(logging.INFO, "text")
    os.environ["PYTHONSAFEPATH"] = (
        "1"  # whatever this process starts does not import from the working directory
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled job tidies up, as after Ctrl-C
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if tracebacks:
            raise
        known = _explained(error)
        logger.error(str(known) if known else _unexpected(error))
        sys.exit(known.exit_code if isinstance(known, HepdaskError) else 1)
    sys.exit(code or 0)


def _explained(error: BaseException) -> BaseException | None:
    """Find the error that says what was wrong in a person's words; None where there is none."""
    if isinstance(error, HepdaskError):
        return error
    # those of hepdask.distributed, which takes long to import, are loaded where one of them was raised
    known = sys.modules.get("hepdask.distributed.errors")
    if known is not None and isinstance(error, known.DistributedError):
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.filename:
            return OutputError(in_words(cause))
        return cause if isinstance(cause, HepdaskError) else error
    return None


def _unexpected(error: Exception) -> str:
    said = (
        in_words(error)
        if isinstance(error, OSError) and error.filename
        else f"{type(error).__name__}: {error}"
    )
    return f"{said} (details with -vv)"


def _parse_overrides(
    _context: click.Context, _option: click.Parameter, words: tuple[str, ...]
) -> dict[str, Any]:
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE")
        try:
            overrides[key] = read_value(value, f"--set {key}")
        except ConfigError as error:
            raise click.BadParameter(str(error)) from None
    return overrides


def _set_logging(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Take note of one of the options for logging; each may be the last to come."""
    said = context.meta.setdefault("hepdask.logging", {"quiet": False, "verbose": 0, "log_json": False})
    said[option.name] = value
    level = logging.DEBUG if said["verbose"] else logging.INFO
    logging_setup.show_in_command(
        logging.ERROR if said["quiet"] else level, "json" if said["log_json"] else "text"
    )


def _everywhere(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option(
            "-v", "verbose", count=True, callback=_set_logging, expose_value=False,
            help="More output: what is decided and why; -vv also shows tracebacks and the libraries' own logs.",
        ),
        click.option(
            "--log-json", is_flag=True, callback=_set_logging, expose_value=False,
            help="Log to standard error as JSON lines.",
        ),
        click.option(
            "-q", "--quiet", is_flag=True, callback=_set_logging, expose_value=False,
            help="Print only errors.",
        ),
    )  # fmt: skip
    for option in options:
        command = option(command)
    return command


def _with_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--cluster", metavar="NAME|FILE|ADDRESS", help="Where to run; overrides the configuration."
    )(command)


def _with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", callback=_parse_overrides,
        help="Override one key, for example training.ranks=2.",
    )(command)  # fmt: skip
    command = _with_cluster(command)
    return click.argument("config", type=click.Path(exists=True, dir_okay=False))(command)


def _load(config: str, overrides: dict[str, Any], cluster: str | None) -> Config:
    return load_config(config, overrides | ({"cluster": cluster} if cluster else {}))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(hepdask.__version__, prog_name="hepdask")
def cli() -> None:
    """From ROOT files of collision events to trained event classifiers, on Dask clusters.

    \b
        hepdask new myanalysis                a project folder for your own classes and branches
        hepdask inspect events.root           does it hold everything that the features need?
        hepdask run configs/demo.yaml         simulate, prepare, train, evaluate
        hepdask COMMAND --help                options of a command, with examples
    """


@cli.command()
@click.argument("name", metavar="NAME", type=click.Path())
@_everywhere
def new(name: str) -> None:
    """Create a folder for your own analysis: classes, branches, selections, features.

    \b
        hepdask new myanalysis
        cd myanalysis                # list your files in config.yaml, write functions in analysis.py
        hepdask run config.yaml
    """
    folder = hepdask.new(name)
    click.echo(f"{folder}: edit config.yaml and analysis.py, then run there: hepdask run config.yaml")


@cli.command()
@click.option(
    "--process", required=True, type=click.Choice(["ttbar", "wjets", "qcd"]), help="Physics process."
)
@click.option("--events", required=True, type=click.IntRange(1), help="Number of events to write.")
@click.option(
    "--seed", default=1, show_default=True, type=click.IntRange(0), help="Seed of all random numbers."
)
@click.option(
    "--pileup",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Mean number of overlaid collisions.",
)
@click.option(
    "--enrich/--no-enrich",
    default=True,
    show_default=True,
    help="QCD: generate only events with a hard lepton.",
)
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="ROOT file to write.")
@_with_cluster
@_everywhere
def simulate(
    process: str, events: int, seed: int, pileup: float, enrich: bool, out: str, cluster: str | None
) -> None:
    """Make a ROOT file of Pythia events with a parametrised detector.

    \b
        hepdask simulate --process ttbar --events 1000 --seed 1 --out ttbar.root
    """
    hepdask.simulate(process, events, out, seed, pileup, enrich, cluster=cluster or "local")


@cli.command()
@_with_config
@click.option("--retry-lost", is_flag=True, help="Try again what a finished run could not read.")
@_everywhere
def prepare(config: str, overrides: dict[str, Any], cluster: str | None, retry_lost: bool) -> None:
    """Turn ROOT files into a store of selected events and their features.

    \b
        hepdask prepare CONFIG
        hepdask prepare CONFIG --set store.max_lost_fraction=0.01

    If it was killed, or is run again, it continues where it stopped.
    """
    hepdask.prepare(_load(config, overrides, cluster), retry_lost=retry_lost)


@cli.command()
@_with_config
@click.option("--model", type=click.Choice(get_args(ModelName)), help="Train only this model.")
@click.option(
    "--cell",
    type=click.Choice(["gru", "lstm", "transformer"]),
    help="Layer that reads the particles, in all models.",
)
@click.option("--from-study", is_flag=True, help="Use the best settings found by tune.")
@_everywhere
def train(
    config: str,
    overrides: dict[str, Any],
    cluster: str | None,
    model: str | None,
    cell: str | None,
    from_study: bool,
) -> None:
    """Train models on the store.

    \b
        hepdask train CONFIG
        hepdask train CONFIG --model inclusive --cell lstm --set training.ranks=4
    """
    cells = {f"models.{name}.cell": cell for name in ("sequence", "inclusive")} if cell else {}
    study = {"training.from_study": True} if from_study else {}
    hepdask.train(_load(config, overrides | cells | study, cluster), model)


@cli.command()
@_with_config
@_everywhere
def tune(config: str, overrides: dict[str, Any], cluster: str | None) -> None:
    """Search for the best settings of a model by cross-validation.

    \b
        hepdask tune CONFIG --set tuning.trials=200
        hepdask train CONFIG --from-study

    If it was killed, or is run again, it continues where it stopped; more trials extend the search.
    """
    hepdask.tune(_load(config, overrides, cluster))


def _compare(context: click.Context, _option: click.Parameter, runs: tuple[str, str] | None) -> None:
    """Print the comparison of two runs instead of evaluating one."""
    if not runs:
        return
    from hepdask.report.compare_runs import compare, table

    click.echo("\n".join(table(compare(*runs))))
    context.exit()


@cli.command()
@_with_config
@click.option(
    "--compare", nargs=2, metavar="RUN RUN", type=click.Path(exists=True), callback=_compare, is_eager=True,
    expose_value=False, help="Print the metrics of two evaluated runs side by side, and exit.",
)  # fmt: skip
@_everywhere
def evaluate(config: str, overrides: dict[str, Any], cluster: str | None) -> None:
    """Score the test split; write report.html and metrics.json.

    \b
        hepdask evaluate CONFIG
        hepdask evaluate --compare runs/one runs/other
    """
    hepdask.evaluate(_load(config, overrides, cluster))


@cli.command()
@_with_config
@click.option("--show-config", is_flag=True, help="Print the full configuration and exit.")
@_everywhere
def run(config: str, overrides: dict[str, Any], cluster: str | None, show_config: bool) -> None:
    """Do everything in order, skipping what is up to date: simulate, prepare, train, evaluate.

    \b
        hepdask run configs/demo.yaml
        hepdask run configs/demo.yaml --set training.ranks=1 --set models.inclusive.epochs=10
    """
    loaded = _load(config, overrides, cluster)
    if show_config:
        click.echo(loaded.to_yaml(), nl=False)
        return
    hepdask.run(loaded)


@cli.command()
@click.argument("model")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--code", multiple=True, metavar="FILE.py|MODULE",
    help="Code of the functions that the model needs, which is run: your own file, or the one kept with the model.",
)  # fmt: skip
@click.option(
    "--out", required=True, help="Folder to write; for a single input file also FILE.root or FILE.parquet."
)
@click.option(
    "--format", type=click.Choice(["root", "parquet"]), help="Default: the suffix of --out, or root."
)
@click.option("--tree", help="Name of the tree, for paths that do not end with it; default: Delphes.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", callback=_parse_overrides,
    help="A key of input, store, analysis.collections or analysis.branches; for example input.read_retries=5.",
)  # fmt: skip
@_with_cluster
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_everywhere
def predict(
    model: str,
    files: tuple[str, ...],
    code: tuple[str, ...],
    out: str,
    format: Literal["root", "parquet"] | None,
    tree: str | None,
    overrides: dict[str, Any],
    cluster: str | None,
    as_json: bool,
) -> None:
    """Score every event of ROOT files with a trained model; one row for each row of the input.

    \b
        hepdask predict runs/demo/models/inclusive data/*.root --out scores
        hepdask predict run/models/hlf data/*.root --code analysis.py --out scores
    """
    if cluster:
        overrides = overrides | {"cluster": cluster}
    done = hepdask.predict(model, files, out, format, tree, overrides, code=code)
    if as_json:
        facts = dataclasses.asdict(done) | {"files": [str(file) for file in done.files]}
        click.echo(json.dumps(facts, indent=1))


@cli.command()
@click.argument("path")
@click.option("--deep", is_flag=True, help="Store: verify all checksums.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_everywhere
def inspect(path: str, deep: bool, as_json: bool) -> int:
    """Show what a ROOT file, a store or a run holds.

    \b
        hepdask inspect events.root
        hepdask inspect runs/demo/store.zarr --deep
        hepdask inspect runs/demo --json
    """
    from hepdask.pipeline.inspect import describe

    facts = hepdask.inspect(path, deep)
    click.echo(json.dumps(facts, indent=1) if as_json else "\n".join(describe(facts)))
    return 1 if facts.get("damaged") else 0


@cli.command()
@click.argument("source", metavar="STORE|MODEL")
@click.option(
    "--format", required=True,
    type=click.Choice(["parquet", "padded-parquet", "tfrecord", "onnx", "savedmodel"]),
    help="Events: jagged physical values, or the published layout (scaled, padded). Models: ONNX or SavedModel.",
)  # fmt: skip
@click.option(
    "--out",
    required=True,
    type=click.Path(),
    help="Events: a new or empty folder. Models: a new file or folder.",
)
@click.option("--split", type=click.Choice(["train", "test"]), help="Only the events of this split.")
@_everywhere
def export(source: str, format: str, out: str, split: Literal["train", "test"] | None) -> None:
    """Write the events of a store, or a trained model, for use with other tools.

    \b
        hepdask export runs/demo/store.zarr --format tfrecord --split train --out train.tfrecord
        hepdask export runs/demo/models/inclusive --format onnx --out inclusive.onnx
    """
    if split and format in ("onnx", "savedmodel"):
        raise click.BadParameter("a model has no events; leave out --split")
    hepdask.export(source, format, out, split)


@cli.command("import")
@_with_config
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@_everywhere
def import_(config: str, overrides: dict[str, Any], cluster: str | None, files: tuple[str, ...]) -> None:
    """Make a store of Parquet files in the published layout, in place of `prepare`.

    \b
        hepdask import published.yaml 'published/*.parquet'
        hepdask train published.yaml
    """
    hepdask.import_published(_load(config, overrides, cluster), files)


@cli.command()
@_with_config
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_everywhere
def submit(config: str, overrides: dict[str, Any], cluster: str | None, as_json: bool) -> None:
    """Submit the whole run, with its driver, as a batch job; the workers become further jobs.

    \b
        hepdask submit CONFIG --cluster slurm
        hepdask status CONFIG --cluster slurm       its state
        hepdask logs -f CONFIG --cluster slurm      its output
        hepdask cancel CONFIG --cluster slurm       end it; submitted again, it continues where it stopped
    """
    job = hepdask.submit(_load(config, overrides, cluster))
    facts = {"number": job.number, "kind": job.kind, "log": str(job.log)}
    click.echo(json.dumps(facts) if as_json else f"job {job.number} submitted; it writes to {job.log}")


@cli.command()
@_with_config
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_everywhere
def status(config: str, overrides: dict[str, Any], cluster: str | None, as_json: bool) -> None:
    """Show the state of the submitted run.

    \b
        hepdask status CONFIG --cluster slurm
    """
    from hepdask.pipeline import submit as submitted

    job, seen = submitted.status(_load(config, overrides, cluster))
    facts = {"number": job.number, "state": seen.state.value, "reason": seen.reason, "log": str(job.log)}
    reason = f" ({seen.reason})" if seen.reason else ""
    click.echo(
        json.dumps(facts) if as_json else f"job {job.number}: {seen.state.value}{reason}; log: {job.log}"
    )


@cli.command()
@_with_config
@click.option("-f", "--follow", is_flag=True, help="Follow the output until the job is over.")
@_everywhere
def logs(config: str, overrides: dict[str, Any], cluster: str | None, follow: bool) -> None:
    """Print the output of the submitted run's driver.

    \b
        hepdask logs -f CONFIG --cluster slurm
    """
    from hepdask.pipeline import submit as submitted

    for text in submitted.logs(_load(config, overrides, cluster), follow):
        click.echo(text, nl=False)


@cli.command()
@_with_config
@_everywhere
def cancel(config: str, overrides: dict[str, Any], cluster: str | None) -> None:
    """End the submitted run.

    \b
        hepdask cancel CONFIG --cluster slurm
    """
    from hepdask.pipeline import submit as submitted

    click.echo(f"job {submitted.cancel(_load(config, overrides, cluster)).number} cancelled")


@cli.group()
def cluster() -> None:
    """Dask clusters."""


@cluster.command("start")
@click.argument("name", default="local", metavar="NAME|FILE")
@click.option("--connection", metavar="FILE.json", help="Write a file for --cluster, also on other machines.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_everywhere
def cluster_start(name: str, connection: str | None, as_json: bool) -> None:
    """Start a cluster that stays up until Ctrl-C, and print its addresses; only you can use it.

    \b
        hepdask cluster start local
        hepdask run configs/demo.yaml --cluster tls://127.0.0.1:PORT
        hepdask cluster start slurm --connection farm.json
        hepdask run configs/demo.yaml --cluster farm.json
    """
    from hepdask import clusters

    with clusters.standing(name, connection) as (facts, still_up):
        if as_json:
            click.echo(json.dumps(facts))
        else:
            click.echo(
                f"scheduler: {facts['address']}\ndashboard: {facts['dashboard']}\nworkers: {facts['workers']}"
            )
            click.echo(f"use it with: --cluster {connection or facts['address']}    stop it with Ctrl-C")
        still_up()


@cluster.command("script")
@click.argument("name", metavar="NAME|FILE")
@_everywhere
def cluster_script(name: str) -> None:
    """Print the job script that starts workers on a batch farm.

    \b
        hepdask cluster script slurm
    """
    from hepdask.clusters.batch_cluster import job_script

    click.echo(job_script(_farm(name)))


@cluster.command("check")
@click.argument("name", metavar="NAME|FILE")
@click.option("--read", metavar="URL", help="A ROOT file that a worker should be able to open.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_everywhere
def cluster_check(name: str, read: str | None, as_json: bool) -> int:
    """Test a batch farm with a single job, or this machine's GPUs; exit with 1 if something must be fixed.

    \b
        hepdask cluster check lxplus --read root://server//path/file.root
        hepdask cluster check gpu
    """
    from hepdask import clusters
    from hepdask.clusters.preflight import check

    settings = clusters.load_cluster(name)
    done = []
    for one in check(settings if isinstance(settings, clusters.GPU) else _farm(name), read):
        done.append(one)
        if not as_json:
            click.echo(f"{'pass' if one.passed else 'FAIL'}  {one.name}: {one.found}")
            if not one.passed:
                click.echo(f"      -> {one.fix}")
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in done]))
    return 0 if all(one.passed for one in done) else 1


def _farm(name: str) -> BatchSettings:
    from hepdask import clusters

    settings = clusters.load_cluster(name)
    if not isinstance(settings, clusters.BatchSettings):
        raise ConfigError(
            f"{name}: a cluster of kind {settings.kind} has no batch jobs; name one of these kinds: "
            f"{', '.join(clusters.BATCH_KINDS)}"
        )
    return settings
