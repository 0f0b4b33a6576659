"""The shards of a gallery as a pipeline of Apache Beam, for those who have a cluster that runs such pipelines.

Workers see the same paths as the machine that starts it: crops, run and output lie on a disk that they share.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared

from ivt_jax.common.errors import DataError
from ivt_jax.encoding.encoder import ImageEncoder
from ivt_jax.gallery.shard import embed_shard

_COUNTERS = "ivt_jax.embed"


class EmbedShards(beam.DoFn):
    """Paths of shards -> a line on each. A process has one model, however many of these it runs."""

    def __init__(self, workdir: Path, out: Path, dtype: str, batch: int):
        self._workdir, self._out, self._dtype, self._batch = workdir, out, dtype, batch
        self._shared = Shared()

    def setup(self) -> None:
        self._encoder = self._shared.acquire(lambda: ImageEncoder(self._workdir), str(self._workdir))

    def process(self, shard: str) -> Iterator[str]:
        """A shard that cannot be read is counted; Beam would try it again, and then give up all others."""
        try:
            done = embed_shard(self._encoder, Path(shard), self._out, self._dtype, self._batch)
        except DataError as error:
            _count("failed", 1)
            yield f"error: {error}"
            return
        _count("before" if done.before else "shards", 1)
        _count("crops", done.crops)
        _count("unreadable", done.unreadable)
        yield str(done)


def embed_shards(
    shards: Iterable[Path], workdir: Path, out: Path, dtype: str, batch: int, flags: Sequence[str]
) -> collections.Counter[str]:
    """Runs the pipeline to its end, with Beam's own `flags`, and returns what was counted on all workers."""
    pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
    lines = (
        pipeline
        | beam.Create([str(shard) for shard in shards])
        | beam.Reshuffle()  # else a runner may give all of them to one worker
        | beam.ParDo(EmbedShards(workdir, out, dtype, batch))
    )
    lines | beam.Map(print)  # on the worker: its log
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace(_COUNTERS))["counters"]
    return collections.Counter({counter.key.metric.name: counter.result for counter in counters})


def _count(name: str, value: int) -> None:
    Metrics.counter(_COUNTERS, name).inc(value)
