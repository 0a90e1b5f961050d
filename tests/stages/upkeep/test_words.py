"""What the commands of upkeep say: contents, kinds of change, an audit's tables."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pipeline.stages.upkeep import audit_words, words
from pipeline.stages.upkeep.results import AuditReport, Copies, Labels, Near

CONTENTS = {
    "path": "features/x.h5", "key": "ab12", "rows": 1234, "dim": 512, "dtype": "float16", "bytes": 2048,
    "splits": {"none": 0, "train": 1000, "val": 234}, "failed": {"corrupt": 2},
    "classes": {f"c{i}": {"train": 40, "val": 10} for i in range(25)},
    "created": None, "versions": {"h5py": "3"},
    "about": {"source": "photos", "root": "/a", "notes": [], "pretrained": False},
    "provenance": {"trunk": {"name": "resnet18", "layer": "avgpool"}, "weights": {"name": "random:0"},
                   "transform": {"crop": 64}, "image_size": 64, "lr": 1e-3, "layers": ["a", "b"]},
}  # fmt: skip


def pairs_of(text: str) -> dict[str, str]:
    return dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in text.splitlines()[1:])


def test_what_matters_of_a_cache_stands_first(printed):
    text = printed(words.contents(CONTENTS), 400)
    pairs = pairs_of(text)
    assert text.splitlines()[0].strip() == "features/x.h5"
    assert list(pairs) == [
        *("features", "splits", "failed", "classes", "source", "trunk", "created", "settings fingerprint")
    ]
    assert pairs["features"] == "1,234 rows of 512 float16, 2.0 KiB"
    assert pairs["splits"] == "1,000 train, 234 val" and pairs["failed"] == "2 corrupt (no features)"
    assert pairs["trunk"] == "resnet18, avgpool; weights random:0 (random or unknown: not pretrained)"
    assert pairs["classes"] == "25"


def test_each_class_is_counted_in_each_split(printed):
    lines = printed(words.per_class(CONTENTS)).splitlines()
    assert lines[0].split() == ["Class", "Train", "Val"]
    assert lines[2].split()[0] == "c0" and len(lines) == 2 + 20 + 1
    assert lines[-1] == "the first 20 of 25 classes"


def test_the_rest_are_pairs_with_readable_names_and_values(printed):
    pairs = pairs_of(printed(words.details(CONTENTS), 400))
    assert pairs["split notes"] == "as the source gives them"
    expected = {"transform.crop": "64", "image size": "64", "lr": "0.001", "layers": "a, b"}
    assert {name: pairs[name] for name in expected} == expected


def test_fields_that_differ_stand_under_the_names_of_the_two_and_a_missing_one_is_a_dash(printed):
    lines = printed(words.differences([("rows", 3, 4), ("engine", "onnx", None)], ["a.h5", "b.h5"])).splitlines()
    assert [line.split() for line in lines if "─" not in line] == [
        *(["Differs", "a.h5", "b.h5"], ["rows", "3", "4"], ["engine", "onnx", "–"])
    ]


def test_names_are_counted_by_kind(printed):
    lines = printed(words.kinds({"changed": ["a", "b"], "new": ["c"]}, "x against y")).splitlines()
    assert lines[0] == "x against y"
    assert [line.split() for line in lines[3:]] == [["changed", "2", "a"], ["b"], ["new", "1", "c"]]


def test_failed_images_are_listed_with_path_and_reason(printed):
    """The path's every byte can be read."""
    failed = {"bees/caf\udce9\n.jpg": "corrupt (truncated)", "ants/b.gif": "not an image"}
    (_, table) = audit_words.audited(dataclasses.replace(REPORT, failed=failed))
    lines = printed(table).splitlines()
    assert lines[0].strip() == "failed images"
    assert [re.split(r" {2,}", line.strip()) for line in lines[3:]] == [
        *(["failed", "2", "bees/caf\\xe9\\n.jpg: corrupt (truncated)"], ["ants/b.gif: not an image"])
    ]


def test_of_many_failures_the_first_are_listed_and_the_rest_counted(printed):
    lines = printed(words.kinds({"failed": [f"{i}.png: truncated" for i in range(1010)]}, "failed images")).splitlines()
    assert lines[3].split()[:2] == ["failed", "1,010"]
    assert lines[-1].strip() == "and 1,000 more"
    assert len(lines) == 3 + 10 + 1


def test_a_long_path_is_folded_not_cut(printed):
    path = "deep/" * 40 + "a.png"
    text = printed(words.kinds({"failed": [path]}, ""))
    assert re.sub(r"\s|failed|1", "", "".join(text.splitlines()[2:])) == path


def report(**more):
    figures = {"ant": {"train": 1000, "val": 3}, "bee": {"train": 500, "val": 0}}
    return AuditReport(
        **{
            "cache": Path("x.h5"), "rows": 1503, "classes": figures, "unlabelled": 0, "imbalance": 2.0,
            "copies": Copies([], [], 0, 0), "empty": {}, "tiny": {}, "failed": {}, "near": None, "dropped": [],
            "findings": [], **more,
        }
    )  # fmt: skip


REPORT = report()


def test_each_class_is_counted_in_each_split_and_an_empty_one_stands_out(printed):
    lines = printed(audit_words.balance(REPORT)).splitlines()
    assert lines[0] == "x.h5: 1,503 rows, largest class 2.0 times the smallest"
    assert re.split(r" {2,}", lines[1].strip()) == ["Class", "Train", "Val", "Share of train"]
    ant, bee = (line.split() for line in lines[3:])
    assert ant == ["ant", "1,000", "3", "66.7", "%"] and bee == ["bee", "500", "0", "33.3", "%"]
    (coloured,) = [line for line in printed(audit_words.balance(REPORT), colour=True).splitlines() if "bee" in line]
    assert re.search(r"\x1b\[1;31m *0", coloured)


def test_of_many_classes_the_smallest_are_shown_and_the_rest_counted(printed):
    many = report(classes={f"c{n}": {"train": n} for n in range(100, 0, -1)})
    text = printed(audit_words.balance(many, limit=3))
    assert re.findall(r"c\d+", text) == ["c1", "c2", "c3"]
    assert "the 3 smallest classes in train, of 100" in text


def test_a_cache_without_classes_is_described_too(printed):
    assert printed(audit_words.balance(report(classes={}, unlabelled=7, imbalance=None))).startswith(
        "x.h5: 1,503 rows, 7 unlabelled\n"
    )


def test_copies_are_numbered_by_group(printed):
    groups = [
        [("train", "ant", "a.png"), ("test", "ant", "b.png")],
        *[[("val", "", "c.png"), ("train", "", "d.png")]] * 2,
    ]
    lines = printed(audit_words.copies(groups, "copies", limit=2)).splitlines()
    assert [line.split() for line in lines[3:5]] == [["1", "train", "ant", "a.png"], ["test", "ant", "b.png"]]
    assert lines[-1] == "the first 2 of 3"


def test_an_audit_shows_what_it_has_found_in_its_order():
    place = ("train", "ant", "a.png")
    found = report(
        copies=Copies([[place, place]], [[place, place]], 3, 2),
        near=Near(0.9, 1, 0, 0, [(0.95, place, place)]),
        failed={"b.png": "corrupt"},
    )
    told = audit_words.audited(found)
    assert [part if isinstance(part, str) else part.title for part in told][1:] == [
        "the same image in more than one split",
        "the same image under different labels",
        "near duplicates, cosine >= 0.9: 1 pair",
        "failed images",
        "3 surplus rows: copies of an image inside its own split weigh it more often",
    ]


@pytest.mark.parametrize(("total", "caption"), [(1, ""), (500, "the first 1 of 500")])
def test_near_pairs_show_their_cosine_and_how_many_there_are(printed, total, caption):
    pair = (0.98765, ("train", "ant", "a.png"), ("test", "bee", "b.png"))
    lines = printed(audit_words.pairs([pair], total, "near")).splitlines()
    assert lines[3].split() == ["0.9877", "train", "a.png", "test", "b.png"]
    assert lines[4:] == ([caption] if caption else [])


@pytest.mark.parametrize(("C", "chosen_from", "said"), [(10.0, 21, True), (0.1, 21, False), (10.0, 1, False)])
def test_a_penalty_at_the_end_of_the_path_is_told_where_it_was_chosen(C, chosen_from, said):
    found = Labels(100, 5, C, chosen_from, 0.9, 0.01, (0.0, 0.03), [], [], [])
    assert (
        "C 10 is the highest that was tried: C takes one beyond" in audit_words.judged(found, "train and val")
    ) == said
