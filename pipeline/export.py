"""Export a model: weights from anywhere into a folder that can be moved, published and loaded elsewhere.

    python -m pipeline.export --checkpoint runs/NAME/checkpoints/latest --out exported
    python -m pipeline.export --checkpoint runs/NAME/checkpoints/latest --out for_open_clip --layout open_clip
    python -m pipeline.export --checkpoint beta --out beta_as_safetensors

Layout `folder` is this project's own (safetensors, config and tokeniser; `pretrained="exported"` loads it),
`published` the checkpoint file of the published code, `open_clip` what open_clip's `local-dir:` loads. To put
a folder on the Hugging Face hub: `hf upload OWNER/NAME exported`, or `pmc_clip.push_to_hub`.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.checks import local_path
from pipeline.cli import main
from pipeline.open_model import open_model
from pmc_clip.export import save_folder, save_open_clip, save_published
from pmc_clip.pretrained import CHECKPOINT

LOADED_BY = {
    "folder": 'pmc_clip.create_model_and_transforms(pretrained="{out}")',
    "published": "the published code's --resume {out}/" + CHECKPOINT,
    "open_clip": 'open_clip.create_model_and_transforms("local-dir:{out}")',
}


@dataclass(frozen=True)
class ExportConfig:
    """Flags of `pipeline.export`."""

    checkpoint: str
    """A checkpoint of a run (the file, or the `latest` beside it), or other weights as
    `pipeline.train --pretrained` reads them: a tag, a path, an address.
    """
    out: str
    """Folder for the exported model."""
    layout: Literal["folder", "published", "open_clip"] = "folder"
    """Whose layout: folder, this project's own; published, the published code's; open_clip, open_clip's."""
    model: str | None = None
    """Name of a model config, or the path of one (JSON), for weights that come without; without it,
    RN50_fusion4 for these.
    """
    average: bool = False
    """Take the average of the weights that `pipeline.train --ema` keeps beside them."""
    overwrite: bool = False
    """Replace the export that the output folder holds."""


def export(config: ExportConfig) -> None:
    """Read the weights, write the folder, and say how to load it."""
    out = local_path("--out", config.out)
    opened = open_model(config.checkpoint, config.model, average=config.average)
    model, tokenizer = opened.model, opened.tokenizer
    match config.layout:
        case "folder":
            save_folder(model, out, tokenizer, overwrite=config.overwrite)
        case "published":
            save_published(model, out / CHECKPOINT, name=out.name, overwrite=config.overwrite)
        case "open_clip":
            save_open_clip(model, out, tokenizer, overwrite=config.overwrite)
    print(f"{opened.title} is in {out}; load it by {LOADED_BY[config.layout].format(out=out)}")
    if config.layout == "open_clip" and model.mlm:
        print("without the part for masked-token prediction, which open_clip has no place for")


if __name__ == "__main__":
    main(export, ExportConfig, "export", __doc__ or "")
