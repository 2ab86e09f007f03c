"""Models out: in this package's own layout, the published one and open_clip's.

    save_folder(model, "exported")                  # safetensors, config, tokeniser; its path loads it
    save_published(model, "checkpoint.pt")          # what the published code reads
    save_open_clip(model, "exported_open_clip")     # open_clip.create_model("local-dir:exported_open_clip")
    push_to_hub("exported", "owner/name")

What is written appears whole or not at all. Nothing that exists is replaced, unless by `overwrite=True`.
"""

from pmc_clip.export.folder import read_folder, save_folder
from pmc_clip.export.hub import push_to_hub
from pmc_clip.export.open_clip import save_open_clip
from pmc_clip.export.published import save_published

__all__ = ["push_to_hub", "read_folder", "save_folder", "save_open_clip", "save_published"]
