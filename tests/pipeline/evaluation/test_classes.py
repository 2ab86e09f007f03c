"""Files of classes, and labels that must be among them."""

import json

import numpy as np
import pytest

from pipeline.evaluation.classes import DEFAULT_TEMPLATES, Classes
from pipeline.evaluation.feature_rows import FeatureRows
from pipeline.evaluation.features import Features
from pipeline.evaluation.labels import LabelSource, class_numbers
from shards import UsageError


def features(keys, **columns):
    none = np.empty(0, np.int64)
    return Features(FeatureRows(2), FeatureRows(2), none, none, keys, columns)


def test_list_of_labels_is_its_own_names():
    classes = Classes.from_json(["CT", "MRI"])
    assert classes.labels == ("CT", "MRI")
    assert classes.prompts[1] == [template.replace("{}", "MRI") for template in DEFAULT_TEMPLATES]


def test_every_name_goes_into_every_template():
    classes = Classes.from_json(
        {
            "label_key": "modality",
            "templates": ["{}", "a {} scan {x}"],
            "classes": {"0": ["computed tomography", "CT"], "1": "ultrasound"},
        }
    )
    assert classes.prompts == [
        ["computed tomography", "a computed tomography scan {x}", "CT", "a CT scan {x}"],
        ["ultrasound", "a ultrasound scan {x}"],
    ]
    assert classes.label_key == "modality"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["CT"], "at least two"),
        (["CT", "CT"], "'CT' stands twice"),
        ({"classes": ["a", "b"], "template": ["{}"]}, "unknown fields template"),
        ({"classes": ["a", "b"], "templates": ["an image"]}, "templates must be"),
        ({"a": [], "b": "x"}, "class 'a' needs a name"),
        ({"classes": 3}, "classes must be a list"),
    ],
)
def test_wrong_file_is_refused_with_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"classes\.json") as refused:
        Classes.read(path)
    assert message in str(refused.value)


def test_label_that_stands_twice_in_an_object_is_refused(tmp_path):
    (tmp_path / "classes.json").write_text('{"a": "one", "b": "two", "a": "three"}')
    with pytest.raises(UsageError, match="'a' stands twice"):
        Classes.read(tmp_path / "classes.json")


def test_labels_come_from_a_column_as_text():
    found = LabelSource.of_column("label").of(features(["1", "2", "3", "4"], label=[3, 3.0, "3", None]))
    assert found == ["3", "3", "3", None]


def test_labels_come_from_a_table_by_the_images_name_or_the_key(tmp_path):
    (tmp_path / "labels.csv").write_text("image,organ\na.png,lung\n000000002,liver\n")
    source = LabelSource.of_table(str(tmp_path / "labels.csv"), "organ")
    found = source.of(features(["000000001", "000000002", "000000003"], image=["a.png", "b.png", "c.png"]))
    assert found == ["lung", "liver", None]


def test_image_with_two_labels_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\na.png,lung\na.png,liver\n")
    with pytest.raises(UsageError, match=r"a\.png has two labels"):
        LabelSource.of_table(str(tmp_path / "labels.csv"), "label")


def test_unknown_and_missing_labels_are_refused_by_name():
    source = LabelSource.of_column("organ")
    assert class_numbers(["b", "a"], ["a", "b"], source, "set").tolist() == [1, 0]
    with pytest.raises(UsageError, match=r"'spleen' \(2 times\)"):
        class_numbers(["a", "spleen", "spleen"], ["a", "b"], source, "set")
    with pytest.raises(UsageError, match="1 sample of 2 without a label"):
        class_numbers(["a", None], ["a", "b"], source, "set")
