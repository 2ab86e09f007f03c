"""One model has one fingerprint, in whatever form its weights come; another has another."""

import dataclasses

import torch

import pmc_clip
from pipeline.model_fingerprint import model_fingerprint
from pipeline.open_model import open_model
from tests.checkpoints import write_checkpoint


def of(checkpoint) -> str:
    opened = open_model(str(checkpoint))
    return model_fingerprint(opened.model, opened.tokenizer)


def test_a_run_and_its_exports_are_one_model_and_other_weights_another(run, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "a")
    assert run("export", "--checkpoint", checkpoint, "--out", "folder").returncode == 0
    assert of(checkpoint) == of(tmp_path / "folder")
    assert of(checkpoint) != of(write_checkpoint(tmp_path / "b", seed=1))


def test_what_weights_do_not_show_counts_and_what_only_training_uses_does_not():
    torch.manual_seed(0)
    model, tokenizer = pmc_clip.create_model("tiny"), pmc_clip.get_tokenizer("tiny")
    before = model_fingerprint(model, tokenizer)
    with torch.no_grad():
        model.logit_scale += 1
        model.mlm_projection += 1
    assert model_fingerprint(model, tokenizer) == before
    text = dataclasses.replace(model.config.text_cfg, mask_padding=not model.config.text_cfg.mask_padding)
    model.config = dataclasses.replace(model.config, text_cfg=text)
    assert model_fingerprint(model, tokenizer) != before
