"""Where a loader's time went, stage by stage, and what it says."""

from pipeline.loader import LoaderStats
from shards.stream import FetchStats


def stage_report(loader: LoaderStats, fetch: FetchStats, seconds: float, workers: int) -> str:
    """A small table of the stages' busy time, and a plain verdict; `seconds` is the time the loader ran."""
    threads = max(workers * seconds, 1e-9)
    rows = [
        ("fetch", fetch.busy, f"{fetch.blocks:,} blocks, {fetch.bytes / 1e6:,.1f} MB read"),
        ("parse and check", loader.parse, f"{loader.parse / threads:.0%} of the {workers} threads' time"),
        ("decode and resize", loader.decode, f"{loader.decode / threads:.0%} of the {workers} threads' time"),
        ("tokenise", loader.text, f"{loader.text / threads:.0%} of the {workers} threads' time"),
        ("waits for fetch", fetch.waited, f"{fetch.waited / max(seconds, 1e-9):.0%} of the run"),
        (
            "consumer waits",
            loader.consumer_wait,
            f"{loader.consumer_wait / max(seconds, 1e-9):.0%} of the run",
        ),
    ]
    table = "\n".join(f"  {stage:<18}{busy:>9.2f} s   {remark}" for stage, busy, remark in rows)
    return f"{table}\n{verdict(loader, fetch, seconds)}"


def verdict(loader: LoaderStats, fetch: FetchStats, seconds: float) -> str:
    """One sentence: who waits for whom, and which flag would help."""
    waiting = loader.consumer_wait / max(seconds, 1e-9)
    if waiting < 0.05:
        return f"the consumer waits {waiting:.0%} of the time: the loader keeps up"
    if fetch.waited > 0.3 * loader.consumer_wait:
        bound = "bound by storage; raise --prefetch-bytes"
    else:
        bound = "bound by decoding; more cores and --workers would help"
    return f"the consumer waits {waiting:.0%} of the time: {bound}"
