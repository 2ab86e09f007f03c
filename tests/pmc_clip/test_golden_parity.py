"""The model computes what the published code computed, from its checkpoint file, through the public API."""

import torch

import pmc_clip


def test_tokenizer_gives_published_ids(golden_config, golden_captions, expected):
    tokens = pmc_clip.get_tokenizer(golden_config)(golden_captions)
    assert torch.equal(tokens, expected["input_ids"])


def test_features_match(golden_model, expected):
    with torch.no_grad():
        image_features = golden_model.encode_image(expected["images"], normalize=True)
        text_features = golden_model.encode_text(expected["input_ids"], normalize=True)
    torch.testing.assert_close(image_features, expected["image_features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(text_features, expected["text_features"], rtol=0, atol=1e-5)


def test_losses_match(golden_model, expected):
    output = golden_model(expected["images"], expected["masked_input_ids"], expected["mlm_labels"])
    match_loss = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
    found = {
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
    for name, gradient in expected["grads"].items():
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=0, atol=1e-4)


def test_fuse_gives_the_states_that_the_loss_scores(golden_model, expected):
    with torch.no_grad():
        features = 3.0 * golden_model.encode_image(expected["images"])  # any length: fuse normalises
        hidden = golden_model.fuse(expected["masked_input_ids"], features)
        scores = (hidden @ golden_model.mlm_projection).log_softmax(-1)
    labels = expected["mlm_labels"]
    loss = torch.nn.functional.nll_loss(scores.transpose(1, 2), labels, ignore_index=0)
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
