"""Where the work in a batch of captions is: the tokens that are read, and those that are scored.

    tokens = tokenizer(captions)                            # [B, T] int64, on the CPU
    layout = TextLayout.of(tokens, labels, mask_padding=config.text_cfg.mask_padding)
    output = model(images, tokens.to(device), layout=layout.to(device))

Two thirds of a padded batch of captions are padding. Where the config keeps padding out of attention
(`mask_padding`), the towers leave it out of all else, too: they work on the real tokens of all captions in
one row ("packed"), and spread them into [B, T] for attention alone, which is a fiftieth of the arithmetic.
"""

from typing import NamedTuple, Self

import torch

from pmc_clip.errors import ModelError

PAD_ID = 0  # of the vocabulary; the label that means "not scored" is 0, too


class TextLayout(NamedTuple):
    """Positions in a batch of token ids [B, T], counted along its rows.

    It is cheapest made where the tokens are made: on a GPU it takes a wait for the device, since its sizes
    follow from the tokens.
    """

    kept: torch.Tensor | None
    """[P] int64: the tokens that are read; None: all, padding too, as the published model does."""
    labelled: torch.Tensor | None = None
    """[M] int64: where among the tokens that are read those lie that are scored; None: none are."""
    targets: torch.Tensor | None = None
    """[M] int64: their true ids."""

    @classmethod
    def of(
        cls, tokens: torch.Tensor, labels: torch.Tensor | None = None, *, mask_padding: bool = False
    ) -> Self:
        """The layout of token ids [B, T] and their labels [B, T] (0: not scored)."""
        if tokens.ndim != 2:
            raise ModelError(f"tokens are {list(tokens.shape)}: expected [B, T], a row for each caption")
        if labels is not None and labels.shape != tokens.shape:
            raise ModelError(
                f"labels are {list(labels.shape)} for tokens {list(tokens.shape)}: make them equal"
            )
        kept = None
        if mask_padding:
            read = tokens != PAD_ID
            read[:, 0] = True  # whose state is the caption's feature, even of a row of padding alone
            kept = read.flatten().nonzero().squeeze(1)
        if labels is None:
            return cls(kept)
        labels = labels.flatten()
        if kept is not None:
            labels = labels.index_select(0, kept)
        labelled = labels.nonzero().squeeze(1)
        return cls(kept, labelled, labels.index_select(0, labelled))

    def to(self, device: torch.device) -> Self:
        """The same on a device; from pinned memory without waiting."""
        return self._replace(
            **{
                name: value.to(device, non_blocking=True)
                for name, value in self._asdict().items()
                if value is not None
            }
        )


class Spread(NamedTuple):
    """How packed rows [P, C] lie in a padded batch [B, T, C], for attention."""

    batch: int
    length: int
    places: torch.Tensor | None
    """[P] int64: the place of each row among the B * T; None: they fill it."""
    attend: torch.Tensor | None
    """[B, 1, 1, T] bool: places that hold a row; None: all do."""

    @classmethod
    def of(cls, batch: int, length: int, places: torch.Tensor | None) -> Self:
        """A padded batch in which the rows lie at `places`."""
        if places is None:
            return cls(batch, length, None, None)
        attend = torch.zeros(batch * length, dtype=torch.bool, device=places.device)
        attend = attend.index_fill(0, places, True)
        return cls(batch, length, places, attend.view(batch, 1, 1, length))

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """[P, C] -> [B, T, C], zero where no row lies."""
        if self.places is not None:
            padded = rows.new_zeros(self.batch * self.length, rows.shape[1])
            rows = padded.index_copy(0, self.places, rows)
        return rows.view(self.batch, self.length, rows.shape[1])

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[B, T, C] -> [P, C], or [B, T] -> [P]."""
        rows = padded.reshape(self.batch * self.length, *padded.shape[2:])
        return rows if self.places is None else rows.index_select(0, self.places)
