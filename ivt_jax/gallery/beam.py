"""Embeds the shards of a gallery as a pipeline of Apache Beam.

Workers see the same paths as the machine that starts the pipeline: crops, run and output are on a shared disk.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared

from ivt_jax.common.errors import DataError
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.gallery.shard import embed_shard

_COUNTERS = "ivt_jax.embed"


class EmbedShards(beam.DoFn):
    """Embeds shards by their paths and yields a line on each. All instances in a process share one model."""

    def __init__(self, workdir: Path, out: Path, dtype: str, batch: int):
        self._workdir, self._out, self._dtype, self._batch = workdir, out, dtype, batch
        self._shared = Shared()

    def setup(self) -> None:
        self._encoder = self._shared.acquire(lambda: Encoder(self._workdir), str(self._workdir))

    def process(self, shard: str) -> Iterator[str]:
        """Counts an unreadable shard; after an exception Beam would try again, and then give up all shards."""
        try:
            done = embed_shard(self._encoder, Path(shard), self._out, self._dtype, self._batch)
            counts, line = done.counts(), done.line
        except DataError as error:
            counts, line = {"failed": 1}, f"error: {error}"
        for name, count in counts.items():
            Metrics.counter(_COUNTERS, name).inc(count)
        yield line


def embed_shards(
    shards: Iterable[Path], workdir: Path, out: Path, dtype: str, batch: int, flags: Sequence[str]
) -> collections.Counter[str]:
    """Runs the pipeline with Beam's own `flags`; returns the counts of all workers, as `embed_here`."""
    pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
    paths = pipeline | beam.Create([str(shard) for shard in shards])
    spread = paths | beam.Reshuffle()  # or a runner may give all of them to one worker
    spread | beam.ParDo(EmbedShards(workdir, out, dtype, batch)) | beam.Map(print)  # into the log of the worker
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace(_COUNTERS))["counters"]
    return collections.Counter({counter.key.metric.name: counter.result for counter in counters})
