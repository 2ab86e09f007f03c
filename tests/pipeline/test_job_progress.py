"""Long phases of which the end is not known tell how far they are."""

from pathlib import Path

from pipeline import job_progress
from pipeline.job_progress import followed
from pipeline.sharding.spool import spool_tables
from pipeline.sharding.tables import TableFormat


def test_a_long_list_says_how_far_it_is_and_loses_nothing(monkeypatch, capsys):
    monkeypatch.setattr(job_progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(followed(range(600), "files listed in a.zip")) == list(range(600))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[0] for line in lines] == [
        "256 files listed in a.zip",
        "512 files listed in a.zip",
    ]


def test_reading_tables_says_how_far_it_is_through_all_of_them(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(job_progress, "SECONDS_BETWEEN_LINES", 0.0)
    tables = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    for table in tables:
        Path(table).write_text("image,caption\n" + "1.png,one\n" * 384)
    with spool_tables(tables, TableFormat()):
        lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[0] for line in lines] == [f"{count} rows read" for count in (256, 512, 768)]


def test_a_short_phase_says_nothing(capsys):
    assert list(followed(range(600), "rows of a.csv read")) == list(range(600))
    assert not capsys.readouterr().err
