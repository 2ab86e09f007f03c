"""What a person sees of a loader at work: a bar with rates on a terminal, a line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

from pipeline.job_progress import SECONDS_BETWEEN_LINES
from pipeline.loader import Loader
from pipeline.run_log import say
from pipeline.stage_report import LEAST_SECONDS, Snapshot, StageReport

_SECONDS_BETWEEN_LOOKS = LEAST_SECONDS


class LiveLine:
    """Follows a loader batch by batch. talks: whether it tells how far it is; bad samples it names in any
    case, after the `name` of this process among several.
    """

    def __init__(self, loader: Loader, batches: int, *, talks: bool, name: str = "") -> None:
        self._loader, self._batches, self._talks, self._name = loader, batches, talks, name
        self._bar = tqdm(
            total=batches,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            disable=not talks or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._every = SECONDS_BETWEEN_LINES if self._bar.disable else _SECONDS_BETWEEN_LOOKS
        self._before, self._done, self._told = Snapshot.take(loader), 0, 0

    def __enter__(self) -> "LiveLine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.tell_bad_samples()
        self._bar.close()

    def advance(self) -> None:
        """Count a batch."""
        self._done += 1
        self._bar.update()
        if time.perf_counter() - self._before.time >= self._every:
            now = Snapshot.take(self._loader)
            report, self._before = StageReport.between(self._before, now), now
            line = report.line("the consumer")
            self._bar.set_postfix_str(line)
            if self._bar.disable:
                say(f"{self._done:,} of {self._batches:,} batches: {line}", main=self._talks)
            self.tell_bad_samples()

    def tell_bad_samples(self) -> None:
        """Name the samples that were substituted since it was last called."""
        for reason in self._loader.bad_samples[self._told :]:
            self._bar.write(f"{self._name}substituted: {reason}", file=sys.stderr)
            self._told += 1
