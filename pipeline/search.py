"""Search embeddings: the figures nearest to a caption or to an image.

    python -m pipeline.search --embeddings embeddings --text "axial CT of the chest"
    python -m pipeline.search --embeddings embeddings --image figure.png --top 20 --json
    python -m pipeline.search --embeddings embeddings --serve

`pipeline.embed` makes the embeddings. Scores are cosine similarities. `--serve` opens a page on this machine
that takes a caption or an uploaded figure and shows the nearest ones.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.checks import check_at_least, parse_bytes
from pipeline.cli import main
from pipeline.embedding.manifest import Part
from pipeline.embedding.reader import Embeddings, open_embeddings
from pipeline.searching.figures import Figures
from pipeline.searching.query_model import QueryModel
from pipeline.searching.searcher import Hit, Searcher
from shards import UsageError


@dataclass(frozen=True)
class SearchConfig:
    """Flags of `pipeline.search`."""

    embeddings: str = "embeddings"
    """Folder that `pipeline.embed` wrote: a path or an address."""
    text: str | None = None
    """Caption to search for."""
    image: str | None = None
    """File with an image to search for."""
    top: int = 10
    """Samples to show, the nearest first."""
    target: Literal["image", "text"] | None = None
    """Whose features are searched: images or captions; without it, images, if there are features of them."""
    index: Literal["exact", "faiss"] = "exact"
    """How: exact compares with every row; faiss builds an index once, keeps it with the embeddings, and may
    miss some.
    """
    checkpoint: str | None = None
    """Where the model of the embeddings is now; without it, where it was then."""
    model: str | None = None
    """Name of a model config, or the path of one (JSON), for weights that come without; without it, what the
    embeddings were made with.
    """
    json: bool = False
    """Print what was found as JSON."""
    serve: bool = False
    """Serve a page to search on, until interrupted."""
    host: str = "127.0.0.1"
    """Address that the page is served at; 127.0.0.1 can be reached from this machine only."""
    port: int = 7860
    """Port that the page is served at; 0 takes any that is free."""
    max_upload: str = "20MiB"
    """Bytes that an uploaded image may have (500kB, 20MiB)."""
    data: str | None = None
    """Where the figures of the embeddings are now, for the page; without it, where they were then."""


def search(config: SearchConfig) -> None:
    """Answer one query on the console, or any number on a page."""
    check_at_least(config, top=1, port=0)
    max_upload = parse_bytes("--max-upload", config.max_upload)
    if [config.text is not None, config.image is not None, config.serve].count(True) != 1:
        raise UsageError("give one of --text CAPTION, --image FILE and --serve")
    image = _read_image(config.image) if config.image is not None else None
    embeddings = open_embeddings(config.embeddings)
    figures = Figures(embeddings.manifest.data, config.data) if config.serve else None
    part = config.target or _part(embeddings)
    embeddings.features(part)
    model = QueryModel(embeddings.manifest.model, config.checkpoint, config.model)
    searcher = Searcher(embeddings, model, config.index, part)
    if figures:
        from pipeline.searching.page import serve  # gradio takes seconds to import, and may be missing

        serve(searcher, figures, config.top, config.host, config.port, max_upload)
        return
    hits = searcher.by_image(image, config.top) if image else searcher.by_text(config.text or "", config.top)
    if config.json:
        print(json.dumps([asdict(hit) for hit in hits], ensure_ascii=False, indent=1))
    else:
        print(_table(hits), flush=True)


def _part(embeddings: Embeddings) -> Part:
    return embeddings.manifest.parts[0]


def _read_image(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"--image {path}: cannot be read ({error.strerror})") from error


def _table(hits: Sequence[Hit]) -> str:
    """A line for each hit, no wider than the terminal."""
    width = shutil.get_terminal_size((160, 24)).columns
    longest = max(len(hit.key) for hit in hits)
    lines = []
    for hit in hits:
        caption = " ".join(hit.caption.split())
        line = f"{hit.rank:>3}  {hit.score:6.3f}  {hit.key:<{longest}}  {caption}".rstrip()
        lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return "\n".join(lines)


if __name__ == "__main__":
    main(search, SearchConfig, "search", __doc__ or "")
