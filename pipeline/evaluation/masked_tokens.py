"""The evaluator of masked-token prediction: the words of a caption that a model finds again, from the rest of
the caption and its image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from pipeline.evaluation.evaluator import Findings, Section
from pipeline.evaluation.subject import Subject
from pipeline.model_input import batch_parts
from pipeline.text import TextStage
from shards import UsageError

MASK_RATIO = 0.15
_LARGEST_LOG = 700.0  # of a float64


@dataclass(frozen=True)
class MaskedTokensEvaluator:
    """Masks captions as training does, the same words every time: they follow from the seed and the sample.

    Loss and accuracy are means over all masked positions of the data set, whatever the batches.
    """

    mask_ratio: float = MASK_RATIO
    seed: int = 0
    task: str = "mlm"
    columns: Sequence[str] = ()

    @torch.no_grad()
    def run(self, subject: Subject) -> Findings | None:
        """Sums on all ranks, figures on the main one."""
        model = subject.model
        if not model.mlm:
            raise UsageError(
                "--task mlm: this model cannot predict masked tokens, since it was trained without --mlm"
            )
        training = model.training
        model.eval()
        text = TextStage(subject.tokenizer, seed=self.seed, mask_ratio=self.mask_ratio)
        # loss, hits, positions: float64, so that how samples fall into batches hardly shows
        sums = torch.zeros(3, dtype=torch.float64)
        with subject.loader(text) as loader:
            for batch in subject.watch(loader):
                assert batch.labels is not None
                (part,) = batch_parts(batch, subject.device, mask_padding=model.config.text_cfg.mask_padding)
                image = model.encode_image(part.images, normalize=True)
                labels = batch.labels.to(subject.device)
                scored = labels > 0
                hidden = model.fuse(part.tokens, image)[scored]
                scores = (hidden @ model.mlm_projection).float()
                targets = labels[scored]
                loss = F.cross_entropy(scores, targets, reduction="sum")
                hits = (scores.argmax(dim=1) == targets).sum()
                sums += torch.stack(
                    [loss.double().cpu(), hits.double().cpu(), torch.tensor(float(len(targets)))]
                )
        model.train(training)
        if subject.topology.world_size > 1:
            on_device = sums.to(subject.device)
            dist.all_reduce(on_device)
            sums = on_device.cpu()
        if not subject.topology.is_main:
            return None
        loss, hits, positions = sums.tolist()
        if not positions:
            told = "masked tokens: none, since the captions are few and short"
            return Findings(values={}, line=told, table=told)
        return _findings(loss / positions, hits / positions, int(positions), self)


def _findings(loss: float, accuracy: float, positions: int, asked: MaskedTokensEvaluator) -> Findings:
    perplexity = math.exp(loss) if loss < _LARGEST_LOG else math.inf
    heading = f"Masked tokens, {positions:,} positions"
    rows = [("accuracy", f"{accuracy:.1%}"), ("loss", f"{loss:.3f}"), ("perplexity", f"{perplexity:,.1f}")]

    def sections() -> list[Section]:
        cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
        return [Section(heading, f'<div class="scroll"><table><tbody>{cells}</tbody></table></div>')]

    return Findings(
        values={"mlm_accuracy": accuracy, "mlm_loss": loss},
        line=f"masked tokens: {accuracy:.1%} of {positions:,} right, loss {loss:.3f}",
        table="\n".join([heading, *(f"{name:<20}{value:>8}" for name, value in rows)]),
        details={"positions": positions, "mask_ratio": asked.mask_ratio, "mask_seed": asked.seed},
        sections=sections,
    )
