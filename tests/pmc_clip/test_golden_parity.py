"""The model computes what the published code computed, from its checkpoint file, through the public API."""

import torch
import torch.nn.functional as F

import pmc_clip


def test_tokenizer_gives_published_ids(golden_config, golden_captions, expected):
    tokens = pmc_clip.get_tokenizer(golden_config)(golden_captions)
    assert torch.equal(tokens, expected["input_ids"])


def test_text_features_match(golden_model, expected):
    with torch.no_grad():
        plain = golden_model.encode_text(expected["input_ids"], normalize=True)
        masked = golden_model.encode_text(expected["masked_input_ids"], normalize=True)
    torch.testing.assert_close(plain, expected["text_features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(masked, expected["masked_text_features"], rtol=0, atol=1e-5)


def test_image_features_match(unmoved_golden_model, expected):
    with torch.no_grad():
        found = unmoved_golden_model.encode_image(expected["images"], normalize=True)
    torch.testing.assert_close(found, expected["image_features"], rtol=0, atol=1e-5)


def test_one_pass_gives_all_losses(unmoved_golden_model, expected):
    output = unmoved_golden_model(expected["images"], expected["masked_input_ids"], expected["mlm_labels"])
    match_loss = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
    found = {
        "image_features": output.image_features,
        "masked_text_features": output.text_features,
        "logit_scale": output.logit_scale,
        "match_loss": match_loss,
        "mlm_loss": output.mlm_loss,
    }
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gradients_match(golden_model, expected):
    output = golden_model(expected["images"], expected["masked_input_ids"], expected["mlm_labels"])
    match_loss = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
    (0.5 * match_loss + 0.5 * output.mlm_loss).backward()
    parameters = dict(golden_model.named_parameters())
    assert len(expected["grads"]) == 4
    for name, gradient in expected[
        "grads"
    ].items():  # some are no larger than 3e-6, so 1e-4 would say nothing
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=0, atol=3e-7)


def test_fuse_gives_the_states_that_the_loss_scores(golden_model, expected):
    with torch.no_grad():
        hidden = golden_model.fuse(expected["masked_input_ids"], 3 * expected["image_features"])  # any length
        scores = (hidden @ golden_model.mlm_projection).log_softmax(-1)
    loss = F.nll_loss(scores.transpose(1, 2), expected["mlm_labels"], ignore_index=0)
    torch.testing.assert_close(loss, expected["mlm_loss"], rtol=0, atol=1e-5)


def test_padding_is_kept_out_only_when_the_config_says_so(golden_config, golden_state, expected):
    settings = golden_config.to_dict()
    settings["text_cfg"]["mask_padding"] = True
    model = pmc_clip.create_model(pmc_clip.ModelConfig.from_dict(settings)).eval()
    pmc_clip.load_published_state_dict(model, golden_state)
    tokens, images = (
        expected["masked_input_ids"][:5],
        expected["images"][:5],
    )  # the sixth caption has no padding
    longest = int((tokens != 0).sum(1).max())
    with torch.no_grad():
        full = model.fuse(tokens, model.encode_image(images))[:, :longest]
        short = model.fuse(tokens[:, :longest], model.encode_image(images))
        published = model.encode_text(tokens, normalize=True) - expected["masked_text_features"][:5]
    real = tokens[:, :longest] != 0
    torch.testing.assert_close(full[real], short[real], rtol=0, atol=1e-5)
    assert published.abs().max() > 1e-3  # so that mask_padding is seen to matter
