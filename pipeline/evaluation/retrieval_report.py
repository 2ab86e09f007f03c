"""Retrieval's parts of the report: figures, curves, and queries with what they found."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from pipeline.evaluation.charts import Series, bar_chart, line_chart
from pipeline.evaluation.contact_sheet import Item, Match, Query, contact_sheet
from pipeline.evaluation.evaluator import Section
from pipeline.evaluation.examples import FoundMatches
from pipeline.evaluation.pairing import Pairing
from pipeline.evaluation.retrieval_figures import FIGURES
from pipeline.evaluation.retrieval_result import LABELS, Direction, RetrievalResult, shown
from shards import Dataset, Sample

_ARROWS = {"image_to_text": "image→text", "text_to_image": "text→image"}
_KINDS = {
    "random": "Queries at random",
    "best": "Best queries",
    "worst": "Worst queries",
}
_BIN_EDGES = (1, 2, 5)  # of each power of ten


@dataclass(frozen=True)
class RetrievalReport:
    """Makes the parts, reading the samples shown from the data set."""

    result: RetrievalResult
    matches: Sequence[FoundMatches]
    dataset: Dataset
    pairing: Pairing
    group_key: str | None

    def sections(self) -> list[Section]:
        """Figures, curves, and the chosen queries."""
        parts = [Section("Retrieval", self._figures()), Section("Recall and ranks", self._curves())]
        for kind, heading in _KINDS.items():
            sheets = "".join(
                f"<h3>{_ARROWS['image_to_text' if found.queries.asks_images else 'text_to_image']}</h3>"
                f"{contact_sheet(self._queries(found))}"
                for found in self.matches
                if found.queries.kind == kind
            )
            if sheets:
                parts.append(Section(heading, sheets))
        return parts

    def _figures(self) -> str:
        directions = self.result.directions
        strict, grouped = self.result.headings(self.group_key)
        tables = _table(strict, directions[:2])
        if self.pairing.has_groups:
            tables += _table(grouped, directions[2:])
        else:
            tables += f'<p class="note">{escape(grouped)}.</p>'
        notes = "".join(f'<p class="note">{escape(line)}.</p>' for line in self.result.ties())
        return f'<div class="tables">{tables}</div>{notes}'

    def _curves(self) -> str:
        shown_directions = self.result.directions[: 4 if self.pairing.has_groups else 2]
        most = self.result.captions
        places = np.unique(np.round(np.geomspace(1, most, 120)).astype(int))
        curves = [
            Series(_name(one), _style(one), _shares_within(one.ranks.expected, places))
            for one in shown_directions
        ]
        guessed = np.minimum(1, places / self.result.pairs)
        curves.append(Series("chance", "chance", guessed.tolist()))
        edges = [edge * 10**power for power in range(12) for edge in _BIN_EDGES]
        edges = [edge for edge in edges if edge < most] + [most]
        within = [
            Series(
                _name(one),
                _style(one),
                np.diff(_shares_within(one.ranks.expected, edges), prepend=0).tolist(),
            )
            for one in shown_directions[:2]
        ]
        names = [_bin_name(low + 1, high) for low, high in zip([0, *edges[:-1]], edges, strict=True)]
        return (
            '<div class="charts">'
            + line_chart(places.tolist(), curves, "recall at rank (log scale)")
            + bar_chart(names, within, "share of queries by rank of the right answer")
            + "</div>"
        )

    def _queries(self, found: FoundMatches) -> list[Query]:
        pairing, asks_images = self.pairing, found.queries.asks_images
        queries = []
        for row, place in enumerate(found.queries.places.tolist()):
            own = pairing.first_text[place] if asks_images else place
            targets = pairing.text_group if asks_images else pairing.image_group
            matches = [
                Match(
                    self._caption(answer) if asks_images else self._image(answer),
                    score,
                    correct=answer == own,
                    related=bool(targets[answer] == pairing.image_group[place]),
                )
                for answer, score in zip(found.places[row].tolist(), found.scores[row].tolist(), strict=True)
            ]
            image, caption = self._image(place), self._caption(int(pairing.first_text[place]))
            asked, answer_item = (image, caption) if asks_images else (caption, image)
            queries.append(
                Query(
                    asked,
                    matches,
                    float(found.queries.ranks[row]),
                    answer_item,
                    float(found.own_scores[row]),
                )
            )
        return queries

    def _image(self, place: int) -> Item:
        """The image at a place of the grid."""
        return Item(image=self._sample(int(self.pairing.image_order[place])).image)

    def _caption(self, place: int) -> Item:
        """The caption at a place of the grid."""
        image = int(np.searchsorted(self.pairing.first_text, place, side="right")) - 1
        sample = self._sample(int(self.pairing.image_order[image]))
        return Item(caption=sample.captions[place - int(self.pairing.first_text[image])])

    def _sample(self, number: int) -> Sample:
        return self.dataset.read_sample(number)


def _table(heading: str, pair: Sequence[Direction]) -> str:
    head = "".join(f"<th>{_ARROWS[one.name.removeprefix('group_')]}</th>" for one in pair)
    rows = ""
    for place, figure in enumerate(FIGURES):
        cells = "".join(f"<td>{_cell(one, place)}</td>" for one in pair)
        rows += (
            f"<tr><th>{LABELS[figure]}</th>{cells}"
            f'<td class="chance">{shown(figure, pair[0].by_chance[place])}</td></tr>'
        )
    return (
        f'<div class="scroll"><table><caption>{escape(heading)}</caption>'
        f"<thead><tr><th></th>{head}<th>chance</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(direction: Direction, place: int) -> str:
    value, _, ends = direction.cell(place).partition(" ")
    return f'<strong>{value}</strong> <span class="interval">{ends}</span>'


def _name(direction: Direction) -> str:
    arrow = _ARROWS[direction.name.removeprefix("group_")]
    return f"{arrow}, group-aware" if direction.group_aware else arrow


def _style(direction: Direction) -> str:
    own = "first" if direction.name.endswith("image_to_text") else "second"
    return f"{own} dotted" if direction.group_aware else own


def _shares_within(ranks: np.ndarray, bounds: Sequence[int] | np.ndarray) -> list[float]:
    """The share of ranks up to each bound."""
    return (np.searchsorted(np.sort(ranks), bounds, side="right") / len(ranks)).tolist()


def _bin_name(low: int, high: int) -> str:
    return f"{high:,}" if low == high else f"≤ {high:,}"
