"""The search page in a real browser: what a person sees, and that nothing leaves the machine."""

import re
import time

import pytest

from shards import open_dataset

pytest.importorskip("gradio")


@pytest.fixture
def served(start, embedded):
    """The address of a page; figures of 1 MiB at most may be uploaded."""
    server = start(
        "search", "--embeddings", embedded.embeddings, "--serve", "--port", 0, "--max-upload", "1MiB"
    )
    line = server.stdout.readline()
    found = re.fullmatch(r"search page: (http://127\.0\.0\.1:\d+)\n", line)
    assert found, line + server.stderr.read()
    return found[1]


def test_a_caption_or_an_uploaded_figure_finds_figures_and_garbage_a_message(
    served, browser, embedded, picture, tmp_path
):
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
    bomb = bytearray(picture())
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(bomb)
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


def test_the_server_itself_refuses_large_uploads_and_leaves_none_behind(served, start, tmp_path):
    import httpx

    content = {"files": ("large.png", bytes(2 * 2**20))}
    assert httpx.post(f"{served}/gradio_api/upload", files=content, trust_env=False).status_code == 413


def test_a_port_in_use_is_said_and_uploads_are_deleted_at_the_end(start, embedded, tmp_path):
    (tmp_path / "tmp").mkdir()
    flags = ("search", "--embeddings", embedded.embeddings, "--serve", "--port")
    first = start(*flags, 0, TMPDIR=str(tmp_path / "tmp"))
    port = int(first.stdout.readline().rsplit(":", 1)[1])
    assert len(list((tmp_path / "tmp").glob("pmc-clip-uploads-*"))) == 1
    second = start(*flags, port)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"--port {port}: the page cannot be served there (Address already in use)" in said
    first.terminate()
    assert first.wait(60) == 143
    deadline = time.monotonic() + 10
    while list((tmp_path / "tmp").glob("pmc-clip-uploads-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
