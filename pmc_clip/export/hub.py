"""An exported folder to the Hugging Face hub."""

import json
from pathlib import Path

from pmc_clip.errors import ModelError
from pmc_clip.export.files import CARD, CONFIG, OPEN_CLIP_CONFIG


def push_to_hub(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload the files of an exported folder as one commit to `owner/name`, made where it does not exist.

    Sign-in and endpoint are huggingface_hub's: its variables HF_TOKEN and HF_ENDPOINT, or `hf auth login`.
    An export for open_clip then names the repository where it named the folder. Returns the repository's
    address. Raises ModelError where the hub does not take it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    if not all((folder / name).is_file() for name in (CARD, CONFIG)):
        raise ModelError(f"{folder}: holds no exported model: export one there first")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    operations = [CommitOperationAdd(path.name, _content(path, repository)) for path in files]
    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.create_commit(repository, operations, commit_message="Add the exported model")
    except Exception as error:  # of requests or httpx, as the version of huggingface_hub has it, or its own
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{repository}: {hub.endpoint} did not take the export ({reason}): check the name and the "
            "network, and sign in with 'hf auth login' as somebody who may write there"
        ) from error
    return str(address)


def _content(path: Path, repository: str) -> str | bytes:
    """What is uploaded of a file: itself, by its path, or its content with the repository's name in it."""
    if path.name != OPEN_CLIP_CONFIG:
        return str(path)
    told = json.loads(path.read_text(encoding="utf-8"))
    told["model_cfg"]["text_cfg"] |= {"hf_model_name": repository, "hf_tokenizer_name": repository}
    return (json.dumps(told, indent=2) + "\n").encode()
