"""Which model it is: a hash of all that its features depend on, whatever file it was read from."""

import hashlib
import json

from pmc_clip import PMCCLIP, Tokenizer

# What training alone uses: two files of one model may differ in it.
_NOT_IN_FEATURES = ("logit_scale", "logit_bias", "img_special_token", "fusion_module.", "mlm_projection")
# What features depend on and weights do not show.
_VISION = ("image_size", "mean", "std", "timm_model_name", "backbone", "head_width")
_TEXT = ("context_length", "mask_padding", "pool")


def model_fingerprint(model: PMCCLIP, tokenizer: Tokenizer) -> str:
    """A hash of the towers' weights, the preprocessing and the vocabulary: 16 hexadecimal digits.

    A checkpoint of a run and what `pipeline.export` makes of it have the same one.
    """
    config = model.config.to_dict()
    told = {
        "vision": {name: config["vision_cfg"][name] for name in _VISION},
        "text": {name: config["text_cfg"][name] for name in _TEXT},
        "tokenizer": tokenizer.fingerprint(),
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(_NOT_IN_FEATURES):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).numpy())
    return digest.hexdigest()[:16]
