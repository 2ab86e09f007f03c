"""The search page in a real browser: what a person sees, and that nothing leaves the machine."""

import re

import httpx
import pytest

from shards import open_dataset
from tests.figures import huge_png

pytest.importorskip("gradio")


@pytest.fixture
def serve(start, embedded):
    """`serve(TMPDIR=…)`: (process, address) of a page to which figures of 1 MiB at most may be uploaded."""

    def serve_page(**environment: str):
        flags = ("--embeddings", embedded.embeddings, "--serve", "--port", 0, "--max-upload", "1MiB")
        server = start("search", *flags, **environment)
        line = server.stdout.readline()
        found = re.fullmatch(r"search page: (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line + server.stderr.read()
        return server, found[1]

    return serve_page


def test_a_caption_or_an_uploaded_figure_finds_figures_and_garbage_a_message(
    serve, browser, embedded, tmp_path
):
    _, served = serve()
    page = browser.new_page()
    errors, addresses = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(served)
    page.fill("#caption textarea", "axial CT of the chest")
    page.click("#caption button")
    page.wait_for_selector("#results .card")
    assert page.locator("#results .card").count() == 10
    assert "axial CT of the chest" in page.text_content("#results .query")
    assert re.search(r"1 score -?0\.\d{3} 0000\d\d", page.text_content("#results .card .score"))
    assert re.search(r"caption 0 of \d+", page.text_content("#results .card .caption"))
    shown = "image => image.complete && image.naturalWidth > 20"
    assert all(image.evaluate(shown) for image in page.query_selector_all("#results .card img"))

    own = tmp_path / "own.jpg"
    own.write_bytes(open_dataset(embedded.figures).read_sample(17).image)
    upload(page, own)
    page.wait_for_selector("#results .query img")
    assert page.text_content("#results .card .score").split() == ["1", "score", "1.000", "000017"]

    (tmp_path / "garbage.png").write_bytes(b"no image at all")
    upload(page, tmp_path / "garbage.png")
    page.wait_for_selector("#results .wrong")
    assert "this cannot be used as an image (not an image)" in page.text_content("#results")
    (tmp_path / "bomb.png").write_bytes(huge_png())
    upload(page, tmp_path / "bomb.png")
    page.wait_for_selector("#results .wrong:has-text('too many pixels')")
    assert not errors
    outside = [url for url in addresses if not url.startswith((served, "data:", "blob:"))]
    assert not outside

    (tmp_path / "large.png").write_bytes(bytes(2 * 2**20))
    upload(page, tmp_path / "large.png")
    page.wait_for_selector("text=exceed the maximum allowed size")


def upload(page, path) -> None:
    """Choose a file in place of the one that is there."""
    clear = page.locator("#figure button[aria-label='Clear']")
    if clear.count():
        clear.click()
    page.set_input_files("#figure input[type=file]", path)


def test_behind_a_proxy_the_server_refuses_large_uploads_keeps_its_port_and_deletes_what_it_got(
    serve, run, embedded, tmp_path
):
    (tmp_path / "tmp").mkdir()
    nowhere = "http://127.0.0.1:9"
    server, address = serve(TMPDIR=str(tmp_path / "tmp"), HTTP_PROXY=nowhere, http_proxy=nowhere)
    for size, status in ((2**20 - 1, 200), (2 * 2**20, 413)):
        content = {"files": ("figure.png", bytes(size))}
        answer = httpx.post(f"{address}/gradio_api/upload", files=content, trust_env=False, timeout=60)
        assert answer.status_code == status
    assert [path.name for path in (tmp_path / "tmp").rglob("*.png")] == ["figure.png"]
    port = address.rsplit(":", 1)[1]
    second = run("search", "--embeddings", embedded.embeddings, "--serve", "--port", port)
    assert second.returncode == 2
    assert f"--port {port}: the page cannot be served there (Address already in use)" in second.stderr
    server.terminate()
    assert server.wait(60) == 143
    assert not list((tmp_path / "tmp").glob("pmc-clip-uploads-*"))
