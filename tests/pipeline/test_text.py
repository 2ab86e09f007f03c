"""Tokens and masks of a batch: a sample's own, whatever batch it is in and however that is padded."""

import numpy as np
import torch

import pmc_clip
from pipeline.text import TextStage

CAPTIONS = [
    "Axial CT of the chest.",
    "",
    "Histology of the liver with densely packed nuclei in pink stroma, stained with hematoxylin and eosin, "
    "at low power; arrows point at three open glands, the scale bar is 50 micrometres.",
    "x-ray",
]


def stage(*, mask_padding: bool, seed: int = 7, mask_ratio: float = 0.5) -> TextStage:
    settings = pmc_clip.load_model_config("tiny").to_dict()
    settings["text_cfg"]["mask_padding"] = mask_padding
    tokenizer = pmc_clip.get_tokenizer(pmc_clip.ModelConfig.from_dict(settings))
    return TextStage(tokenizer, seed=seed, mask_ratio=mask_ratio)


def rows(stage: TextStage, numbers: list[int], epoch: int = 0) -> dict[int, tuple[list[int], list[int]]]:
    """Tokens and labels of samples, in one batch, without padding."""
    tokens, labels = stage(
        [CAPTIONS[number] for number in numbers], np.full(len(numbers), epoch), np.array(numbers)
    )
    assert labels is not None
    assert tokens.shape == labels.shape
    real = tokens != 0
    assert not labels[~real].any()
    return {
        number: (tokens[row][real[row]].tolist(), labels[row][real[row]].tolist())
        for row, number in enumerate(numbers)
    }


def test_a_samples_masks_do_not_depend_on_its_batch_or_on_padding():
    fixed, longest = stage(mask_padding=False), stage(mask_padding=True)
    expected = rows(fixed, [0, 1, 2, 3])
    assert any(labels.count(0) < len(labels) for _, labels in expected.values())
    assert rows(longest, [0, 1, 2, 3]) == expected
    for number in range(4):  # alone, the short ones are padded to 8 and 16
        assert rows(longest, [number]) == {number: expected[number]}


def test_masks_differ_between_epochs_seeds_and_samples():
    masks = [
        rows(stage(mask_padding=True), [2]),
        rows(stage(mask_padding=True), [2], epoch=1),
        rows(stage(mask_padding=True, seed=8), [2]),
    ]
    assert len({tuple(mask[2][1]) for mask in masks}) == 3
    _, labels = stage(mask_padding=True)([CAPTIONS[2]] * 2, np.zeros(2, np.int64), np.array([2, 3]))
    assert labels is not None
    assert not torch.equal(labels[0], labels[1])


def test_without_a_ratio_nothing_is_masked_and_there_are_no_labels():
    plain = stage(mask_padding=True, mask_ratio=0.0)
    tokens, labels = plain(CAPTIONS, np.zeros(4, np.int64), np.arange(4))
    assert labels is None
    tokenizer = pmc_clip.get_tokenizer("tiny")
    assert torch.equal(tokens, tokenizer(CAPTIONS)[:, : tokens.shape[1]])
