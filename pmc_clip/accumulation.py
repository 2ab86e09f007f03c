"""Gradient accumulation for contrastive batches that do not fit into memory.

    parts = [Part(images[rows], tokens[rows], layout) for rows, layout in …]    # on the model's device
    losses = accumulate(model, parts, match_loss, LossWeights(0.5, 0.5))
    optimizer.step()

Every pair is compared with the whole batch, so the gradients of parts alone cannot simply be added. As in
GradCache (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"), a
first pass computes the features of all parts and keeps nothing else; the loss over them says what gradient
each feature is owed; a second pass computes each part again, with the same dropout, and sends the gradients
through it. Memory is that of one part's activations and of the batch's features; the price is one more pass
forward.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pmc_clip.losses import LossWeights
from pmc_clip.model import ModelOutput
from pmc_clip.text_layout import TextLayout

MatchLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(image features [local, D], text features [local, D], logit scale, logit bias or None) -> scalar."""
Autocast = Callable[[], AbstractContextManager[object]]


class Part(NamedTuple):
    """Samples of a rank's batch that are computed together, on the model's device."""

    images: torch.Tensor
    """[B, 3, S, S], as the model takes them."""
    tokens: torch.Tensor
    """[B, T] int64."""
    layout: TextLayout
    """Of the tokens and, for masked-token prediction, of their labels: in all parts or in none."""

    @property
    def labelled(self) -> int:
        """How many positions are scored."""
        return 0 if self.layout.labelled is None else len(self.layout.labelled)


class Losses(NamedTuple):
    """The losses of a batch, detached scalars."""

    total: torch.Tensor
    """The weighted sum."""
    match: torch.Tensor
    """Of the features."""
    mlm: torch.Tensor | None
    """Of masked-token prediction; None without labels."""


def accumulate(
    model: nn.Module,
    parts: Sequence[Part],
    match_loss: MatchLoss,
    weights: LossWeights,
    *,
    autocast: Autocast = nullcontext,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
) -> Losses:
    """Add the gradients of one batch to the parameters' `.grad`, and return the batch's losses.

    model: a PMCCLIP, plain, compiled, or in DistributedDataParallel, which averages the gradients over the
        ranks once, with the last part. Each rank calls this with its own parts, at least one.
    match_loss: compares all features of this rank, in the order of the parts, with each other and with those
        of the other ranks: `contrastive_loss` or `siglip_loss` with the ids of the rank's whole batch.
    weights: of the two losses. Without labels the loss of the features counts in full.
    autocast: makes the context in which the model runs: `partial(torch.autocast, "cuda", torch.bfloat16)`.
    scale: what is done to a loss before its gradients are computed: a GradScaler's `scale`.

    Losses and gradients are those of the batch in one piece, to rounding, including the gradients of the
    logit scale and bias. Masked-token prediction is the mean over all labelled positions of the rank's batch,
    however these are spread over the parts. Dropout is drawn once per part: the second pass repeats the first
    one's draws, and leaves torch's generators where the first one did.

    BatchNorm in training mode is the exception: it normalises each part by the part's own statistics, not the
    batch's (SyncBatchNorm: by those of all ranks' parts), as all gradient accumulation does. Both passes
    normalise alike, so the gradients are exact for the features that the loss compared. The running
    statistics move once per part, in the first pass, as if each part were a batch.
    """
    computed, random_states = _without_graph(model, parts, autocast)
    match, owed = _compare(computed, match_loss)

    labelled = max(1, sum(part.labelled for part in parts))
    mlm_shares = []
    with _running_statistics_kept(model):
        for number, (part, random_state, gradients) in enumerate(
            zip(parts, random_states, owed, strict=True), start=1
        ):
            random_state.restore(part.images.device)
            with nullcontext() if number == len(parts) else _averaging_later(model):
                with autocast():
                    output = model(part.images, part.tokens, layout=part.layout)
                share = None if output.mlm_loss is None else output.mlm_loss * (part.labelled / labelled)
                scale(weights.total(gradients.through(output), share)).backward()
            if share is not None:
                mlm_shares.append(share.detach())
    mlm = torch.stack(mlm_shares).sum() if mlm_shares else None
    return Losses(weights.total(match, mlm), match, mlm)


class _RandomState(NamedTuple):
    """Torch's generators at one moment: what dropout draws from there on."""

    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> Self:
        """Of the CPU and, if it is one, the GPU."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    def restore(self, device: torch.device) -> None:
        """Draw from here on what was drawn from there on."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


class _Owed(NamedTuple):
    """The gradients of the match loss by what a part gives it, under the names of ModelOutput.

    None where another part passes them on.
    """

    image_features: torch.Tensor
    text_features: torch.Tensor
    logit_scale: torch.Tensor | None
    logit_bias: torch.Tensor | None

    def through(self, output: ModelOutput) -> torch.Tensor:
        """A scalar without meaning, but with these gradients."""
        return torch.stack(
            [
                (getattr(output, name) * gradient).sum()
                for name, gradient in self._asdict().items()
                if gradient is not None
            ]
        ).sum()


def _without_graph(
    model: nn.Module, parts: Sequence[Part], autocast: Autocast
) -> tuple[list[ModelOutput], list[_RandomState]]:
    """The first pass: what the model gives for each part, and the random state that it started from."""
    outputs, random_states = [], []
    for part in parts:
        random_states.append(_RandomState.now(part.images.device))
        with torch.no_grad(), autocast():
            outputs.append(model(part.images, part.tokens, layout=part.layout, features_only=True))
    return outputs, random_states


def _compare(outputs: Sequence[ModelOutput], match_loss: MatchLoss) -> tuple[torch.Tensor, list[_Owed]]:
    """The match loss over all parts, detached, and the gradients that it owes to each."""
    sizes = [len(output.image_features) for output in outputs]
    images = torch.cat([output.image_features for output in outputs]).requires_grad_()
    texts = torch.cat([output.text_features for output in outputs]).requires_grad_()
    scale, bias = outputs[-1].logit_scale.detach().requires_grad_(), outputs[-1].logit_bias
    if bias is not None:
        bias = bias.detach().requires_grad_()
    loss = match_loss(images, texts, scale, bias)
    given = [value for value in (images, texts, scale, bias) if value is not None]
    by_images, by_texts, *by_scalars = torch.autograd.grad(loss, given, materialize_grads=True)
    owed = [
        _Owed(part_images, part_texts, None, None)
        for part_images, part_texts in zip(by_images.split(sizes), by_texts.split(sizes), strict=True)
    ]
    # Every part computes the scale and the bias, but the loss has them once: the last part passes theirs on.
    by_scale, by_bias = (*by_scalars, None)[:2]
    owed[-1] = owed[-1]._replace(logit_scale=by_scale, logit_bias=by_bias)
    return loss.detach(), owed


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Within, BatchNorm normalises as it did before, but moves no running statistics."""
    norms = [
        module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _averaging_later(model: nn.Module) -> AbstractContextManager[None]:
    """Within, gradients stay on this rank: DistributedDataParallel adds them to what it averages later."""
    return getattr(model, "no_sync", nullcontext)()
