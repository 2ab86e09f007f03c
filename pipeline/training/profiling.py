"""`--profile`: a trace of a few steps, for chrome://tracing or ui.perfetto.dev."""

from contextlib import nullcontext
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.run_log import say

SKIPPED, WARM_UP, TRACED = 4, 1, 3


class StepProfiler:
    """Traces three steps once the first few are over: `with StepProfiler(folder, asked) as profiler:`, and
    `profiler.step()` after each. Without being asked, it does nothing.
    """

    def __init__(self, folder: Path, asked: bool) -> None:
        self._path = folder / "profile" / "trace.json"
        self._asked, self._written = asked, False
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = (
            nullcontext()
            if not asked
            else profile(
                activities=activities,
                schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=TRACED, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
            )
        )

    def __enter__(self) -> "StepProfiler":
        self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profile.__exit__(kind, error, trace)
        if self._asked and not self._written:
            say(f"--profile: no trace, since there were fewer than {SKIPPED + WARM_UP + TRACED} steps")

    def step(self) -> None:
        """A step is over."""
        if isinstance(self._profile, profile):
            self._profile.step()

    def _write(self, traced: profile) -> None:
        self._written = True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        traced.export_chrome_trace(str(self._path))
        say(f"a trace of {TRACED} steps: {self._path}; look at it with ui.perfetto.dev")
