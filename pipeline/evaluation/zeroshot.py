"""The evaluator of zero-shot classification: each image gets the class whose words are nearest to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.evaluation.classes import Classes
from pipeline.evaluation.classification import ClassificationMetrics
from pipeline.evaluation.classification_findings import classification_findings
from pipeline.evaluation.evaluator import Findings
from pipeline.evaluation.gathering import gather_list, gather_rows
from pipeline.evaluation.labels import LabelSource, class_numbers
from pipeline.evaluation.subject import Subject

_PROMPTS_AT_A_TIME = 256


@dataclass(frozen=True)
class ZeroShotEvaluator:
    """Compares images with prompts of every class (Radford et al. 2021, "Learning Transferable Visual Models
    From Natural Language Supervision").
    """

    classes: Classes
    labels: LabelSource
    task: str = "zeroshot"

    @property
    def columns(self) -> Sequence[str]:
        """What the labels are read from."""
        return self.labels.columns

    def run(self, subject: Subject) -> Findings | None:
        """Scores on all ranks, figures on the main one."""
        features, ids = subject.features, subject.ids
        weights = class_features(subject, self.classes)
        scores = gather_rows(features.image.read() @ weights.T, subject.topology)
        labels = gather_list(self.labels.of(features), subject.topology)
        if not subject.topology.is_main:
            return None
        known = class_numbers(labels, self.classes.labels, self.labels, subject.dataset.folder.address)
        scale = float(subject.model.logit_scale.detach().exp())
        probabilities = torch.softmax(scale * scores, dim=1).numpy()
        metrics = ClassificationMetrics.from_scores(probabilities, known, self.classes.labels)
        details = {"templates": self.classes.templates, "names": self.classes.names}
        return classification_findings("zeroshot", "Zero-shot classification", metrics, details, ids)


@torch.no_grad()
def class_features(subject: Subject, classes: Classes) -> torch.Tensor:
    """[C, D] float32 of length 1: the mean of each class's prompts."""
    prompts = classes.prompts
    flat = [prompt for of_class in prompts for prompt in of_class]
    features = torch.cat(
        [
            subject.encode_captions(flat[start : start + _PROMPTS_AT_A_TIME])
            for start in range(0, len(flat), _PROMPTS_AT_A_TIME)
        ]
    )
    owner = torch.from_numpy(np.repeat(np.arange(len(classes)), [len(of_class) for of_class in prompts]))
    sums = torch.zeros(len(classes), features.shape[1]).index_add_(0, owner, features)
    return F.normalize(sums, dim=-1)
