"""The log of a run."""

import json
import os

from pipeline.run_log import RunLog


class FullDisk:
    """A file that takes nothing."""

    def write(self, text: str) -> None:
        raise OSError(28, os.strerror(28))

    def close(self) -> None:
        raise OSError(28, os.strerror(28))


def test_a_disk_that_takes_no_more_is_told_once_and_costs_entries_only(tmp_path, capfd):
    log = RunLog(tmp_path, 0)
    log.write(1, 10, {"loss": 1.0}, "train")
    kept, log._file = log._file, FullDisk()
    for step in (2, 3):
        log.write(step, step * 10, {"loss": 1.0}, "train")
    said = capfd.readouterr().err
    assert said.count("the log could not be written") == 1
    assert "No space left on device" in said
    log._file = kept
    log.write(4, 40, {"loss": 1.0}, "train")
    log._file = FullDisk()
    log.close()
    assert "the log could not be written" in capfd.readouterr().err
    kept.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4]


def test_what_is_no_number_is_null_so_that_every_line_is_json(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write(1, 10, {"loss": float("nan"), "gradient_norm": float("inf"), "skipped_steps": 1}, "train")
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in line
    assert json.loads(line) | {"loss": None, "gradient_norm": None, "skipped_steps": 1} == json.loads(line)
