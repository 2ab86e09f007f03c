"""The evaluator of retrieval: image→text and text→image, strictly and by groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.evaluator import Findings
from pipeline.evaluation.examples import choose_queries, find_matches
from pipeline.evaluation.gathering import gather, gather_list
from pipeline.evaluation.groups import group_by_captions, group_by_column
from pipeline.evaluation.pairing import Pairing
from pipeline.evaluation.ranks import count_ranks
from pipeline.evaluation.retrieval_report import RetrievalReport
from pipeline.evaluation.retrieval_result import RetrievalResult
from pipeline.evaluation.sample_ids import hash_ids
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.tiled_rows import TiledRows


@dataclass(frozen=True)
class RetrievalEvaluator:
    """Ranks every image's caption among all captions, and every caption's image among all images.

    group_key: the column whose value makes samples a group; None: their captions do. seed: of the bootstrap,
    and of the queries shown. detailed: with intervals, and queries to look at, as a report wants it.
    """

    group_key: str | None = None
    seed: int = 0
    detailed: bool = False
    task: str = "retrieval"

    @property
    def columns(self) -> Sequence[str]:
        """The column of the groups."""
        return (self.group_key,) if self.group_key else ()

    def run(self, subject: Subject) -> Findings | None:
        """Figures of the whole data set."""
        features, topology = subject.features, subject.topology
        ids = subject.ids
        counts = np.concatenate(gather(features.captions, topology))
        hashes = np.concatenate(gather(features.caption_hashes, topology))
        pairing = Pairing.make(self._labels(subject, hashes, counts), hash_ids(ids), counts)
        first_image, first_text = (
            sum(gather(len(rows), topology)[: topology.rank]) for rows in (features.image, features.text)
        )
        image = TiledRows(features.image, pairing.image_order, topology, subject.device, first=first_image)
        text = TiledRows(features.text, pairing.text_order, topology, subject.device, first=first_text)
        ranks = count_ranks(image, text, pairing, topology)
        chosen = choose_queries(ranks, pairing, self.seed) if self.detailed else ()
        matches = [find_matches(queries, image, text, ranks, pairing) for queries in chosen]
        if not topology.is_main:
            return None
        wordings = pairing.different_of_group(hashes)
        result = RetrievalResult.make(ranks, pairing, wordings, ids, self.seed if self.detailed else None)
        report = RetrievalReport(result, matches, subject.dataset, pairing, self.group_key)
        return Findings(
            result.values,
            result.line(),
            result.table(self.group_key),
            intervals=result.intervals,
            details={"group_key": self.group_key, **result.details},
            per_sample=result.arrays(),
            sections=report.sections,
        )

    def _labels(self, subject: Subject, hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The group of each sample: uint64 [N]."""
        if self.group_key is None:
            return group_by_captions(hashes, counts)
        values = subject.features.columns.get(self.group_key, [])
        return group_by_column(self.group_key, gather_list(values, subject.topology))
