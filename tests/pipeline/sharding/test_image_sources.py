"""Images are found by the table's names wherever they are: folders, archives, addresses."""

import io
import pickle
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import s3fs

from pipeline.sharding.image_sources import open_image_source
from pipeline.sharding.rows import Rejected
from shards import DataError, UsageError

MEMBERS = {"a.png": b"first", "b.png": b"second image", "c.png": b"x" * 3000}


def write_folder(path, members):
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def write_tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    return path


WRITERS = {"folder": write_folder, "images.zip": write_zip, "images.tar": write_tar}


def reader(images, names, table="train.csv"):
    """`read(name)` as a worker process does it: the location goes through pickle."""
    source = open_image_source([str(path) for path in images], [str(table)], names)

    def read(name):
        with pytest.MonkeyPatch.context() as elsewhere:
            elsewhere.chdir("/")
            return pickle.loads(pickle.dumps(source.locate(name))).read()

    read.source = source
    return read


def reason(read, name):
    with pytest.raises(Rejected) as rejected:
        read(name)
    return str(rejected.value)


@pytest.fixture(params=WRITERS)
def kind(request):
    return request.param


def put(folder, kind, members):
    """These members in a source of a kind; what `--images` is to name."""
    return WRITERS[kind](folder / kind, members)


@pytest.fixture(scope="session")
def figures(shared):
    """The real figures: name and bytes."""
    return {path.name: path.read_bytes() for path in sorted((shared / "pmc_sample" / "images").iterdir())}


def check_all(images, figures):
    """A source gives these figures, to workers too, and knows their sizes."""
    names = list(figures)
    with open_image_source([str(images)], ["train.csv"], names[:10]) as source:
        assert source.sizes(names[::9]) == [len(figures[name]) for name in names[::9]]
        locations = pickle.loads(pickle.dumps([source.locate(name) for name in names]))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda location: location.read(), locations)) == list(figures.values())


def test_all_real_figures_are_the_same_from_every_kind_of_source(figures, shared, tmp_path):
    assert len(figures) == 277
    check_all(shared / "pmc_sample" / "images", figures)
    check_all(write_zip(tmp_path / "stored.zip", figures), figures)
    check_all(write_zip(tmp_path / "deflated.zip", figures, zipfile.ZIP_DEFLATED), figures)
    check_all(write_tar(tmp_path / "all.tar", figures), figures)


def test_real_figures_are_the_same_from_s3(figures, shared, tmp_path, s3):
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    bucket.put(str(shared / "pmc_sample" / "images") + "/", "bucket/figures/", recursive=True)
    check_all(f"{s3}/figures/", figures)
    for archive in (write_zip(tmp_path / "all.zip", figures), write_tar(tmp_path / "all.tar", figures)):
        bucket.put(str(archive), f"bucket/archives/{archive.name}")
        check_all(f"{s3}/archives/{archive.name}", dict(list(figures.items())[::10]))


def test_missing_images_and_names_that_lead_outside_are_rejected(tmp_path, kind):
    write_folder(tmp_path, {"secret.png": b"secret"})
    read = reader([put(tmp_path, kind, MEMBERS)], list(MEMBERS))
    assert reason(read, "d.png") == "missing"
    for name in ("../secret.png", "x/../../secret.png", str(tmp_path / "secret.png"), "s3://bucket/a.png"):
        assert reason(read, name) == "outside the image folder", name
    assert read.source.sizes(["c.png", "d.png", "a.png", "..", "a\0b"]) == [3000, 0, 5, 0, 0]


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("{}", "images/{}"),
        ("images/{}", "data/images/{}"),
        ("images/{}", "/home/someone/data/images/{}"),
        ("{}", "s3://bucket/data/images/{}"),
        ("images/{}", "{}"),
        ("data/images/{}", "images/{}"),
        ("images/{}", "pmc\\images\\{}"),
        ("{}", ".//{}"),
        ("ü/{}", "images/ü/{}"),
    ],
)
def test_names_match_with_and_without_leading_folders(tmp_path, kind, stored, wanted):
    members = {stored.format(name): data for name, data in MEMBERS.items()}
    names = [wanted.format(name) for name in MEMBERS]
    read = reader([put(tmp_path, kind, members)], names)
    assert [read(name) for name in names] == list(MEMBERS.values())
    assert read.source.sizes(names) == [len(data) for data in MEMBERS.values()]


def test_the_exact_path_wins_and_an_ambiguous_name_is_rejected(tmp_path, kind):
    images = put(tmp_path, kind, {"PMC1/a.png": b"one", "PMC2/a.png": b"two", "PMC2/b.png": b"three"})
    read = reader([images], ["PMC2/a.png"])
    assert read("PMC2/a.png") == b"two"
    read = reader([images], ["b.png"])
    assert read("b.png") == b"three"
    assert reason(read, "a.png") == "ambiguous name"
    assert read.source.sizes(["a.png", "b.png"]) == [0, 5]


def test_absolute_paths_inside_the_folder_are_fine(tmp_path):
    folder = write_folder(tmp_path / "images", MEMBERS)
    read = reader([folder], [str(folder / "a.png")])
    assert read(str(folder / "b.png")) == b"second image"
    (folder / "link.png").symlink_to(write_folder(tmp_path, {"secret.png": b"secret"}) / "secret.png")
    assert reason(read, "link.png") == "outside the image folder"


def test_the_first_source_that_has_an_image_wins(tmp_path, s3):
    folder = write_folder(tmp_path / "folder", {"a.png": b"from the folder"})
    zipped = write_zip(tmp_path / "some.zip", {"x/a.png": b"from the zip", "x/b.png": b"from the zip"})
    s3fs.S3FileSystem().pipe({"bucket/mixed/b.png": b"from s3", "bucket/mixed/c.png": b"from s3"})
    read = reader([folder, zipped, f"{s3}/mixed"], ["images/a.png", "images/b.png"])
    names = ["images/a.png", "images/b.png", "images/c.png", "images/d.png"]
    assert [read(name) for name in names[:3]] == [b"from the folder", b"from the zip", b"from s3"]
    assert reason(read, names[3]) == "missing"
    assert read.source.sizes(names) == [15, 12, 7, 0]


def test_identity_survives_moving_table_and_images_but_not_other_images(tmp_path, kind):
    (tmp_path / "old").mkdir()
    before = open_image_source(
        [str(put(tmp_path / "old", kind, MEMBERS))], [str(tmp_path / "old" / "train.csv")], ["a.png"]
    ).identity
    (tmp_path / "old").rename(tmp_path / "new")
    moved = (str(tmp_path / "new" / kind), str(tmp_path / "new" / "train.csv"))
    assert open_image_source([moved[0]], [moved[1]], ["a.png"]).identity == before
    assert str(tmp_path) not in before
    if kind != "folder":
        put(tmp_path / "new", kind, {**MEMBERS, "d.png": bytes(10000)})
        assert open_image_source([moved[0]], [moved[1]], ["a.png"]).identity != before


@pytest.mark.parametrize("where", [".", "images", "images.zip", "images.tar"])
def test_without_images_the_places_beside_the_table_are_tried(tmp_path, where):
    writer = {".zip": write_zip, ".tar": write_tar}.get(where[-4:], write_folder)
    writer(tmp_path / where, MEMBERS)
    with open_image_source([], [str(tmp_path / "train.csv")], list(MEMBERS)) as source:
        assert source.locate("b.png").read() == b"second image"
        again = open_image_source(source.addresses, [str(tmp_path / "train.csv")], list(MEMBERS))
        assert again.identity == source.identity


def test_without_images_a_remote_table_has_them_beside_it_too(tmp_path, s3):
    s3fs.S3FileSystem().put(str(write_zip(tmp_path / "images.zip", MEMBERS)), "bucket/remote/images.zip")
    with open_image_source([], [f"{s3}/remote/train.csv"], list(MEMBERS)) as source:
        assert source.addresses == [f"{s3}/remote/images.zip"]
        assert source.locate("b.png").read() == b"second image"


def test_a_table_may_hold_addresses(tmp_path, s3):
    s3fs.S3FileSystem().pipe({"bucket/in table/a.png": b"one", "bucket/in table/b.png": b"two"})
    names = [f"{s3}/in table/{name}" for name in ("a.png", "b.png")]
    for images in ([], [f"{s3}/in table"]):
        read = reader(images, names)
        assert [read(name) for name in names] == [b"one", b"two"]
        assert reason(read, f"{s3}/in table/c.png") == "missing"
        for escape in ("file:///etc/hostname", "/etc/hostname", "s3://other/a.png", f"{s3}/../other/a.png"):
            assert reason(read, escape) == "outside the image folder", escape
        for hostile in ("a\nb.png", "x" * 2000, "\udc80.png"):
            assert "unreadable" in reason(read, f"{s3}/in table/{hostile}")
    assert reader([], names).source.identity == s3


def test_a_storage_that_refuses_stops_the_job_instead_of_rejecting_rows(http_server):
    read = reader([http_server], ["a.png"])
    assert read("a.png") == b"first"
    assert reason(read, "missing.png") == "missing"
    with pytest.raises(DataError, match=r"forbidden/a\.png: reading .* 403"):
        read("forbidden/a.png")


@pytest.fixture
def http_server():
    """The address of a server of MEMBERS that forbids a folder."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            data = MEMBERS.get(self.path.removeprefix("/images/"))
            self.send_response(200 if data else 403 if "forbidden" in self.path else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/images"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["nowhere"], "nowhere: no such folder of images"),
        (["nowhere.zip"], r"nowhere\.zip: no such file"),
        (["nowhere.tar"], r"nowhere\.tar: no such file"),
        (["s3://nobucket/images.zip"], r"s3://nobucket/images\.zip: no such file"),
        (["nothing://x/images"], "nothing://x/images: this kind of address is not available"),
        (["images.tar.gz"], "no random access"),
        (["images.tgz"], "no random access"),
        (["notes.txt"], r"no such folder of images, nor a \.zip or \.tar"),
        (["notes.zip"], "not a zip file"),
        (["notes.tar"], "not a tar file"),
        (["gzipped.tar"], "no random access"),
        (["empty.zip"], "holds no files"),
        (["empty.tar"], "holds no files"),
        (["other"], r"none of the first 2 images of train\.csv \(such as 'a\.png'\) is in .*'other\.png'"),
        (["other.zip"], r"such as 'a\.png'\) is in .*other\.zip \(which holds 'x/other\.png'\); correct"),
        (["s3://bucket/nothing"], r"is in s3://bucket/nothing; correct"),
        ([], r"or .*images: say where they are with --images FOLDER"),
    ],
)
def test_a_wrong_source_is_refused_with_the_reason(tmp_path, monkeypatch, s3, images, message):
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "notes.zip", "notes.tar"):
        (tmp_path / name).write_text("hello, this is a note\n" * 100)
    (tmp_path / "gzipped.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    write_zip(tmp_path / "empty.zip", {})
    write_tar(tmp_path / "empty.tar", {})
    write_folder(tmp_path / "other", {"other.png": b""})
    write_zip(tmp_path / "other.zip", {"x/other.png": b""})
    with pytest.raises(UsageError, match=message):
        open_image_source(images, ["train.csv"], ["a.png", "b.png"])
