"""Put evaluations of several models on the same samples side by side, with paired differences.

    python -m pipeline.compare a/metrics.json b/metrics.json
    python -m pipeline.compare runs/*/evaluation/test-step-* --out comparison

Every other evaluation is compared with the first. Differences have 95 % intervals from the bootstrap: the
same queries (or groups of them) are drawn for both models, so what makes a query hard for both cancels out.
"""

import json
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import tyro

from pipeline.checks import check_at_least, check_no_file, local_path
from pipeline.cli import main
from pipeline.evaluation.comparison import Difference, Evaluation, check_comparable, differences
from pipeline.evaluation.evaluator import Section
from pipeline.evaluation.report import report_page
from pipeline.evaluation.retrieval_result import shown
from pipeline.run_log import say
from shards import UsageError
from shards.storage import write_atomically

_COMPARISON, _PAGE = "comparison.json", "comparison.html"


@dataclass(frozen=True)
class CompareConfig:
    """Flags of `pipeline.compare`."""

    evaluations: tyro.conf.Positional[tuple[str, ...]]
    """Two evaluations or more: their metrics.json, or the folders that these are in."""
    out: str | None = None
    """Folder for comparison.json and comparison.html; without it, they are not written."""
    seed: int = 0
    """Seed of the resamples."""


def compare(config: CompareConfig) -> None:
    """Compare all with the first; print and write what came out."""
    check_at_least(config, seed=0)
    check_no_file("--out", local_path("--out", config.out or ""))
    if len(config.evaluations) < 2:
        raise UsageError("give at least two evaluations to compare: their metrics.json")
    evaluations = [Evaluation.read(source) for source in config.evaluations]
    check_comparable(evaluations)
    first = evaluations[0]
    sections, told = [], []
    for other in evaluations[1:]:
        rows = differences(first, other, config.seed)
        heading = f"{other.content['checkpoint']} against {first.content['checkpoint']}"
        print(f"{heading}\n{_table(rows)}", flush=True)
        sections.append(Section(heading, _html_table(rows)))
        told.append(
            {
                "first": first.source,
                "second": other.source,
                "differences": [asdict(row) | {"difference": row.difference} for row in rows],
            }
        )
    if config.out:
        facts = {"data": first.content["data"], "samples": f"{first.content['pairs']:,}"}
        page = report_page(f"Models side by side on {first.content['data']}", facts, sections)
        write_atomically(Path(config.out) / _PAGE, page.encode())
        write_atomically(Path(config.out) / _COMPARISON, json.dumps(told, indent=1).encode())
        say(f"comparison: {config.out}/")


def _table(rows: list[Difference]) -> str:
    lines = [f"{'':<44}{'first':>10}{'second':>10}  difference"]
    for row in rows:
        a, b, difference, ends = _cells(row)
        lines.append(f"{row.name:<44}{a:>10}{b:>10}  {difference} {ends}{' *' * row.is_clear}".rstrip())
    return "\n".join([*lines, "* the 95 % interval leaves zero out"])


def _html_table(rows: list[Difference]) -> str:
    body = ""
    for row in rows:
        a, b, difference, ends = _cells(row)
        strong = f"<strong>{difference}</strong>" if row.is_clear else difference
        body += (
            f"<tr><th>{escape(row.name.replace('_', ' '))}</th><td>{a}</td><td>{b}</td>"
            f'<td>{strong} <span class="interval">{ends}</span></td></tr>'
        )
    return (
        '<div class="scroll"><table><caption>Bold where the 95 % interval leaves zero out</caption><thead>'
        f"<tr><th></th><th>first</th><th>second</th><th>difference</th></tr></thead><tbody>{body}</tbody>"
        "</table></div>"
    )


def _cells(row: Difference) -> tuple[str, str, str, str]:
    """Both figures, their difference and its interval, as people read them."""
    figure = next((kind for kind in ("recall", "mean_reciprocal_rank", "rank") if kind in row.name), "score")
    a, b, difference = (shown(figure, value) for value in (row.first, row.second, row.difference))
    sign = "+" * (row.difference > 0)
    ends = "" if row.ends is None else f"[{', '.join(shown(figure, end).rstrip('%') for end in row.ends)}]"
    return a, b, sign + difference, ends


if __name__ == "__main__":
    main(compare, CompareConfig, "compare", __doc__ or "")
