"""Zero-shot classification, probe, nearest neighbours and masked tokens by command, on drawn figures that a
small model can learn, and what is refused.
"""

import json
import re
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import make_options
from pipeline.evaluation.masked_tokens import MaskedTokensEvaluator
from pipeline.evaluation.subject import Subject
from pipeline.topology import Topology
from pmc_clip import create_model, get_tokenizer
from shards import open_dataset

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, write_table, launch):
    """Folders `train` (90 samples) and `test` (30) of plain figures with a column `colour`; a run on them."""
    folder, (launcher, environment) = tmp_path_factory.mktemp("colours"), launch

    def do(command, *flags):
        words = [*launcher(1, command), *map(str, flags)]
        subprocess.run(words, cwd=folder, env=environment(), check=True, capture_output=True)

    rng = np.random.default_rng(0)
    for split, count in (("train", 90), ("test", 30)):
        rows = []
        for number in range(count):
            name = list(COLOURS)[number % 3]
            shade = np.clip(np.array(COLOURS[name]) + rng.integers(-25, 25, 3), 0, 255)
            image = Image.new("RGB", (64, 64), tuple(shade.tolist()))
            image.save(folder / f"{split}{number}.png")
            rows.append({"image": f"{split}{number}.png", "caption": f"a {name} field", "colour": name})
        write_table(folder, rows, f"{split}.csv")
        do("shard", "--csv", f"{split}.csv", "--out", split)
    flags = ["--train-data", "train", "--model", "tiny", "--batch-size", 30, "--steps", 40, "--lr", "2e-3"]
    do("train", *flags, "--mlm", "--warmup", 5, "--name", "run")
    classes = {"label_key": "colour", "templates": ["a {} field"], "classes": list(COLOURS)}
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder


@pytest.fixture
def evaluate(run, drawn, tmp_path):
    """Run `pipeline.evaluate` on the drawn test figures: what has ended, and what metrics.json says."""

    def run_evaluate(*flags, processes=1):
        done = run(
            "evaluate",
            *("--data", drawn / "test", "--checkpoint", drawn / "runs/run/checkpoints", "--out", "out"),
            *("--task", *flags),
            processes=processes,
        )
        metrics = tmp_path / "out" / "metrics.json"
        return done, json.loads(metrics.read_text()) if metrics.exists() else None

    return run_evaluate


def test_zeroshot_names_what_the_model_learnt_and_shows_the_confusion(evaluate, drawn, tmp_path):
    done, found = evaluate("zeroshot", "--classes", drawn / "classes.json")
    assert done.returncode == 0, done.stderr
    assert found["metrics"]["zeroshot_top_1"] > 0.6
    assert found["metrics"]["zeroshot_macro_auc"] > 0.7
    assert np.array(found["zeroshot"]["confusion"]).sum() == 30
    assert "balanced accuracy" in done.stdout
    assert (tmp_path / "out" / "zeroshot-confusion.svg").read_text().startswith("<svg")
    assert "red taken for red" in (tmp_path / "out" / "report.html").read_text()


def test_probe_and_neighbours_learn_from_labelled_data(evaluate, drawn):
    done, found = evaluate("probe", "knn", "--fit-data", drawn / "train", "--label-key", "colour")
    assert done.returncode == 0, done.stderr
    assert found["metrics"]["probe_top_1"] > 0.9
    assert found["metrics"]["knn_top_1"] > 0.9
    assert found["knn"]["neighbours"] == 20
    assert found["probe"]["validation accuracy"] > 0.9


def test_classifications_are_compared_sample_by_sample(run, evaluate, drawn, tmp_path):
    """Of a model and of the same one that is told red is green; with other labels they are refused."""
    classes = json.loads((drawn / "classes.json").read_text())
    swapped = {"red": ["green"], "green": ["red"], "blue": ["blue"]}
    (tmp_path / "swapped.json").write_text(json.dumps(classes | {"classes": swapped}))
    (tmp_path / "labels.csv").write_text(
        "image,which\n" + "\n".join(f"test{n}.png,{list(COLOURS)[n // 10]}" for n in range(30))
    )
    for name, flags in (
        ("right", ["--classes", drawn / "classes.json"]),
        ("wrong", ["--classes", tmp_path / "swapped.json"]),
        ("other", ["--classes", drawn / "classes.json", "--labels", "labels.csv", "--label-key", "which"]),
    ):
        done, _ = evaluate("zeroshot", *flags)
        assert done.returncode == 0, done.stderr
        (tmp_path / "out").rename(tmp_path / name)
    assert run("compare", "right", "wrong", "--out", "both").returncode == 0
    (told,) = json.loads((tmp_path / "both" / "comparison.json").read_text())
    rows = {row["name"]: row for row in told["differences"]}
    figures = [json.loads((tmp_path / n / "metrics.json").read_text())["metrics"] for n in ("right", "wrong")]
    for name in ("zeroshot_top_1", "zeroshot_balanced_accuracy"):
        low, high = rows[name]["ends"]
        assert rows[name]["difference"] == pytest.approx(figures[1][name] - figures[0][name])
        assert low <= rows[name]["difference"] <= high < 0
    assert rows["zeroshot_macro_auc"]["ends"] is None
    done = run("compare", "right", "other")
    assert (done.returncode, "the same samples with other labels (zeroshot)" in done.stderr) == (2, True)


def test_labels_come_from_a_table_and_the_penalty_from_validation_data(evaluate, drawn, tmp_path):
    lines = ["image,which"]
    for split, count in (("train", 90), ("test", 30)):
        lines += [f"{split}{number}.png,{'even' if number % 2 == 0 else 'odd'}" for number in range(count)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    done, found = evaluate(
        *("probe", "--fit-data", drawn / "train", "--val-data", drawn / "test"),
        *("--labels", tmp_path / "labels.csv", "--label-key", "which"),
    )
    assert done.returncode == 0, done.stderr
    assert found["probe"]["recall"].keys() == {"even", "odd"}
    assert found["probe"]["learnt from"].endswith("90 samples")


def test_masked_tokens_are_the_same_whatever_the_batch_and_better_than_by_chance(drawn):
    def found(batch_size, seed=0):
        torch.manual_seed(0)
        model = create_model("tiny")
        subject = Subject(
            model,
            get_tokenizer("tiny"),
            open_dataset(str(drawn / "test")),
            Topology(),
            torch.device("cpu"),
            make_options(1, None, Topology()),
            batch_size=batch_size,
        )
        return MaskedTokensEvaluator(0.4, seed).run(subject)

    whole, pieces, others = found(30), found(7), found(30, seed=1)
    assert pieces.details == whole.details
    assert pieces.values["mlm_loss"] == pytest.approx(whole.values["mlm_loss"], abs=1e-6)
    assert others.details != whole.details


def test_masked_tokens_of_a_trained_model_by_command(evaluate):
    done, found = evaluate("mlm", "--mask-ratio", "0.4")
    assert done.returncode == 0, done.stderr
    assert found["metrics"]["mlm_accuracy"] > 0.2
    assert found["mlm"]["positions"] > 10


@pytest.mark.slow
def test_tasks_find_the_same_on_two_processes(evaluate, drawn):
    flags = ["zeroshot", "probe", "knn", "mlm", "--fit-data", drawn / "train"]
    flags += ["--classes", drawn / "classes.json", "--mask-ratio", "0.4"]
    alone, both = (evaluate(*flags, processes=processes)[1] for processes in (1, 2))
    assert both["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
    assert both["mlm"]["positions"] == alone["mlm"]["positions"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["zeroshot"], "needs --classes"),
        (["knn"], "needs --fit-data"),
        (["retrieval", "--neighbours", "3"], "--neighbours is for --task knn"),
        (["mlm", "--mask-ratio", "0"], "--mask-ratio"),
        (["zeroshot", "--classes", "absent.json"], "absent.json: it cannot be read"),
    ],
)
def test_flags_that_do_not_fit_are_refused(evaluate, flags, message):
    done, found = evaluate(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert found is None


def test_labels_that_are_no_class_are_refused_by_name(evaluate, drawn, tmp_path):
    (tmp_path / "two.json").write_text('["red", "green"]')
    done, _ = evaluate("zeroshot", "--classes", tmp_path / "two.json", "--label-key", "colour")
    assert done.returncode == 2
    assert "'blue' (10 times)" in done.stderr


def test_column_that_no_sample_has_is_refused_with_those_there_are(evaluate, drawn):
    done, _ = evaluate("zeroshot", "--classes", drawn / "classes.json", "--label-key", "organ")
    assert done.returncode == 2
    assert re.search(r"no column organ: .*colour", done.stderr)
