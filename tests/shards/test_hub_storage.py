"""Data sets on the Hugging Face hub (`hf://datasets/…`), read from a server with its layout."""

from pathlib import Path

import fsspec
import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status

from shards import DataError, Folder, Mixture, SampleStream, UsageError, open_dataset
from shards.retry import is_refusal, is_transient
from tests.figures import write_figures
from tests.hub_server import HubServer

SAMPLES = 90


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    write_figures(folder, SAMPLES)
    return folder


@pytest.fixture
def hub(figures, monkeypatch):
    """The figures in the folder `train` of a repository."""
    files = {f"train/{path.name}": path.read_bytes() for path in figures.iterdir()}
    with HubServer("owner/figures", files) as server:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.endpoint})
        yield server


ADDRESS = "hf://datasets/owner/figures/train"


def epoch(address: str) -> list[tuple[str, bytes]]:
    dataset = open_dataset(address)
    with SampleStream(dataset, Mixture([dataset], [12]).plan(stop=SAMPLES)) as stream:
        return [(sample.key, bytes(sample.image)) for sample in (raw.read() for raw in stream)]


def test_samples_are_those_of_the_local_shards_and_come_by_ranged_reads(hub, figures):
    assert epoch(ADDRESS) == epoch(str(figures))
    reads = [(first, size) for name, first, size in hub.sent if name.endswith(".tar")]
    assert sum(size for _, size in reads) < 2.5 * (figures / "d-000000.tar").stat().st_size
    assert max(first for first, _ in reads) > 0


def test_a_server_that_is_busy_for_a_moment_is_asked_again(hub, figures):
    hub.unavailable = 1
    assert epoch(ADDRESS) == epoch(str(figures))


NO_REPOSITORY = r"no such repository at http://127\S+; check its name, and HF_TOKEN if .* private or gated"


@pytest.mark.parametrize(
    ("refusal", "refused", "address", "kind", "words"),
    [
        ((403, "GatedRepo"), "/datasets/", ADDRESS, DataError, "reading failed: .*check the credentials"),
        ((401, "RepoNotFound"), "/", ADDRESS, UsageError, NO_REPOSITORY),
        (None, "/", "hf://datasets/owner/figure/train", UsageError, NO_REPOSITORY),
        (None, "/", "hf://datasets/owner/figures/trian", UsageError, "no data set here"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line_with_what_to_do(hub, refusal, refused, address, kind, words):
    hub.refusal, hub.refused = refusal, refused
    with pytest.raises(DataError, match=rf"^{address}.*{words}") as raised:
        open_dataset(address)
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_told_from_trouble(hub):
    with pytest.raises(FileNotFoundError, match=r"/train/nothing\.tar: no such file"):
        Folder(ADDRESS).read_range("nothing.tar", 0, 10)


def test_trouble_that_may_pass_is_told_from_a_refusal(hub):
    hub.unavailable = 1
    session = get_session()
    with pytest.raises(HfHubHTTPError) as busy:
        hf_raise_for_status(session.get(f"{hub.endpoint}/storage/train/manifest.json"))
    with pytest.raises(Exception, match="refused") as away:
        session.get("http://127.0.0.1:1")
    hub.refusal = 403, "GatedRepo"
    with pytest.raises(HfHubHTTPError) as refused:
        hf_raise_for_status(session.get(hub.endpoint))
    raised = busy.value, away.value, refused.value
    assert [is_transient(error) for error in raised] == [True, True, False]
    assert [is_refusal(error) for error in raised] == [False, False, True]
