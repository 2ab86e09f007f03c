"""A page to search on, served by gradio to this machine: a caption or an uploaded figure in, figures out.

The page needs no network: no telemetry, no fonts or scripts from elsewhere. Uploads are limited in bytes by
the server and in pixels before they are decoded, and are deleted when the server ends.
"""

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from pipeline.interrupts import quick_end
from pipeline.run_log import say
from pipeline.searching.cards import STYLE, message_html, results_html
from pipeline.searching.figures import Figures
from pipeline.searching.searcher import Hit, Searcher
from pipeline.wording import counted
from shards import UsageError

_LOCAL = ("127.0.0.1", "localhost", "::1")
_LONGEST_CAPTION = 5_000  # characters; the model reads fewer tokens than that
_SECONDS_KEPT = 3600  # of an upload


def serve(searcher: Searcher, figures: Figures, top: int, host: str, port: int, max_upload: int) -> None:
    """Serve the page until interrupted. UsageError where gradio is missing, or the address cannot be had."""
    port = _free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="pmc-clip-uploads-") as uploads:
        # Read when gradio is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        for name in ("NO_PROXY", "no_proxy"):  # gradio asks its own server whether it is up
            os.environ[name] = ",".join([*filter(None, [os.environ.get(name)]), host, *_LOCAL])
        gradio = _import_gradio()
        page = build_page(gradio, searcher, figures, top, max_upload)
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=max_upload,
            footer_links=[],
            theme=gradio.themes.Base(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=STYLE,
        )
        try:
            with quick_end():
                print(f"search page: http://{host}:{port}", flush=True)
                if host not in _LOCAL:
                    say(f"--host {host}: whoever can reach this machine can search and see the figures")
                say("Ctrl-C ends it")
                threading.Event().wait()
        finally:
            page.close(verbose=False)


def build_page(gradio: Any, searcher: Searcher, figures: Figures, top: int, max_upload: int) -> Any:
    """The page: two ways to ask, and a place for what is found."""
    manifest = searcher.embeddings.manifest
    samples = counted(len(searcher.embeddings), "figure")
    answer = _Answer(searcher, figures)
    with gradio.Blocks(
        title="Figure search",
        analytics_enabled=False,
        delete_cache=(_SECONDS_KEPT, _SECONDS_KEPT),
    ) as page:
        gradio.HTML(
            f"<h1>Figure search</h1><p class='about'>{samples} of {os.path.basename(manifest.data.address)}. "
            "Describe a figure, or upload one, to see those nearest to it.</p>"
        )
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=3):
                caption = gradio.Textbox(
                    label="Caption",
                    placeholder="axial CT of the chest with a nodule in the right upper lobe",
                    lines=3,
                    max_length=_LONGEST_CAPTION,
                    submit_btn="Search",
                    elem_id="caption",
                )
                count = gradio.Slider(1, max(50, top), value=top, step=1, label="Figures to show")
            with gradio.Column(scale=2):
                upload = gradio.File(
                    label=f"Figure (JPEG, PNG, TIFF, …; at most {max_upload / 2**20:,.4g} MiB)",
                    type="binary",
                    height=150,
                    elem_id="figure",
                )
        results = gradio.HTML(message_html("What you find appears here."), elem_id="results")
        options = {"outputs": results, "api_visibility": "private", "show_progress": "minimal"}
        caption.submit(answer.to_caption, [caption, count], **options)
        upload.upload(answer.to_figure, [upload, count], **options)
    return page


class _Answer:
    """What the page shows for a question: figures, or why there are none."""

    def __init__(self, searcher: Searcher, figures: Figures) -> None:
        self._searcher, self._figures = searcher, figures
        self._one_at_a_time = threading.Lock()

    def to_caption(self, caption: str, count: int) -> str:
        """The figures nearest to a caption, as HTML."""
        return self._show(lambda: self._searcher.by_text(caption, int(count)), caption)

    def to_figure(self, data: bytes | None, count: int) -> str:
        """The figures nearest to an uploaded one, as HTML."""
        return self._show(lambda: self._searcher.by_image(data or b"", int(count)), data or b"")

    def _show(self, search: Callable[[], list[Hit]], query: str | bytes) -> str:
        try:
            with self._one_at_a_time:
                hits = search()
        except UsageError as error:
            return message_html(str(error), wrong=True)
        return results_html(query, [(hit, self._figures.read(hit.number)) for hit in hits])


def _free_port(host: str, port: int) -> int:
    """The port, or for 0 any that is free; UsageError where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OverflowError:
        raise UsageError(f"--port {port}: a port is a number up to 65535") from None
    except OSError as error:
        raise UsageError(
            f"--host {host} --port {port}: the page cannot be served there ({error.strerror}): give another "
            "--port (0 takes any that is free), or a --host of this machine"
        ) from error


def _import_gradio() -> Any:
    try:
        import gradio
    except ImportError:
        raise UsageError("--serve: gradio is missing: pip install 'pmc-clip-stream[serve]'") from None
    return gradio
