"""The demo on a user's own table; on its synthetic figures it runs in CI as a command of its own."""

import pytest


@pytest.mark.slow
def test_demo_runs_on_a_users_own_table(run, shared, tmp_path):
    table = shared / "pmc_sample" / "train.csv"
    done = run("demo", "--csv", table, "--epochs", 1, "--batch-size", 16, "--short")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert [line.split()[3] for line in commands] == [
        "pipeline.shard",
        "pipeline.stream",
        "pipeline.train",
        "pipeline.evaluate",
    ]
    assert "R@10" in done.stdout
    assert (tmp_path / "demo" / "evaluation" / "report.html").exists()


def test_demo_refuses_a_table_without_the_columns(run, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    done = run("demo", "--csv", "t.csv")
    assert done.returncode == 2
    assert "no column 'image'; its columns are 'a', 'b'" in done.stderr
