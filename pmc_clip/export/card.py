"""The README.md of an exported folder: what the hub shows of the model."""

from pmc_clip.model import PMCCLIP

_FOLDER_USE = """\
```python
import pmc_clip  # pip install pmc-clip-stream

source = "hf-hub:OWNER/{name}"  # or the path of this folder
model, _, preprocess = pmc_clip.create_model_and_transforms(pretrained=source)
tokenizer = pmc_clip.get_tokenizer(model.config)
image_features = model.encode_image(preprocess(image)[None], normalize=True)
text_features = model.encode_text(tokenizer(["Axial CT of the chest."]), normalize=True)
```"""

_OPEN_CLIP_USE = """\
```python
import open_clip  # pip install open_clip_torch transformers

source = "hf-hub:OWNER/{name}"  # or "local-dir:" and the path of this folder
model, _, preprocess = open_clip.create_model_and_transforms(source)
tokenizer = open_clip.get_tokenizer(source)
```

`hf_model_name` and `hf_tokenizer_name` in open_clip_config.json say where open_clip finds config.json and the
tokeniser: the path of this folder, or the repository that `pmc_clip.push_to_hub` uploaded it to. Correct them
when you move the folder, or upload it by other means. The fusion transformer, which predicts masked tokens,
has no place in open_clip and is not here."""


def folder_card(model: PMCCLIP, name: str) -> str:
    """The card of this package's own layout. name: the folder's."""
    return _card(model, name, "pmc_clip", _FOLDER_USE)


def open_clip_card(model: PMCCLIP, name: str) -> str:
    """The card of open_clip's layout. name: the folder's."""
    return _card(model, name, "open_clip", _OPEN_CLIP_USE)


def _card(model: PMCCLIP, name: str, library: str, use: str) -> str:
    vision, text = model.config.vision_cfg, model.config.text_cfg
    tower = vision.timm_model_name or f"{vision.backbone}, width {vision.width}"
    padding = "kept out of attention" if text.mask_padding else "read, as in the published model"
    return f"""\
---
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags:
- clip
- pmc-clip
- biomedical
---

# {name}

A PMC-CLIP model: biomedical figures and their captions in one space of {model.config.embed_dim} dimensions
([Lin et al. 2023](https://arxiv.org/abs/2303.07240)).

| part | |
| --- | --- |
| images | {vision.image_size} px, tower {tower} |
| captions | at most {text.context_length} tokens; BERT with {text.layers} layers; padding {padding} |

{use.format(name=name)}

Before you publish it, say here what it was trained on, and under which licence it may be used.
"""
