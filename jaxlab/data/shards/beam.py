"""Apache Beam as the engine of `run.tokenize`: on this machine or on a cluster.

    shards -> Create -> Reshuffle -> worker.attempt

Without Reshuffle one worker would get all. Nothing flows back but through OUT, so every
runner that calls a function on each element will do. Workers need this package, the
source and OUT: in a bucket or on a shared disk. Dataflow takes an image with
`--sdk_container_image`, Flink and Spark one with `--environment_type=DOCKER
--environment_config=IMAGE`.
"""

import os
from collections.abc import Sequence

from jaxlab.core import errors, installation
from jaxlab.data.shards import plan, worker
from jaxlab.data.shards import run as run_lib

_QUIET = "--default_sdk_harness_log_level=WARNING"  # local workers tell every step


def engine(runner: str, options: Sequence[str] = ()) -> run_lib.Engine:
    """The engine of a runner.

    Args:
        runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner ...
        options: Beam's own, e.g. "--project=mine".

    Raises:
        UserError: Beam is not installed; a runner or an option it does not take.
    """
    try:
        import apache_beam as beam
        from apache_beam.options import pipeline_options
    except ImportError:
        raise errors.UserError(
            f"--runner {runner} needs Apache Beam: {installation.how_to_add('beam')}"
        ) from None
    try:
        flags = pipeline_options.PipelineOptions([_QUIET, *options], runner=runner)
        pipeline = beam.Pipeline(options=flags)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise errors.UserError(f"Beam does not take this: {reason}") from None

    def run(job: plan.Job, shards: Sequence[plan.Shard]) -> None:
        if not shards:
            return
        elements = [tuple(shard) for shard in shards]  # else Beam looks for a schema
        with pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(elements)
                | "Spread" >> beam.Reshuffle()
                | "Tokenize" >> beam.Map(_attempt, job)
            )

    return run


def _attempt(element: tuple, job: plan.Job) -> None:
    # Runners keep each core busy with a worker; the tokenizer's threads would be more.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    worker.attempt(job, plan.Shard(*element))
