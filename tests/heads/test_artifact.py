"""The saved head: reads back, loads without the package, refuses what was touched."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.base.errors import HeadError
from pipeline.heads.artifact import Head, load_head, match_classes, require_key, save_head

KEY = "ab" * 32


def head(**changes):
    rng = np.random.default_rng(0)
    tensors = {
        "weight": rng.standard_normal((3, 5)).astype(np.float32),
        "bias": rng.standard_normal(3).astype(np.float32),
    }
    fields = {"kind": "linear", "tensors": tensors, "classes": ("ant", "bee", "cat"), "key": KEY, "dim": 5}
    return Head(**{**fields, "meta": {"solver": "adamw"}, **changes})


def rewrite(folder, **changes):
    record = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps({**record, **changes}))


def test_saved_head_reads_back_the_same(tmp_path):
    save_head(tmp_path, head())
    again = load_head(tmp_path)
    for name, tensor in head().tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert (again.kind, again.classes, again.key, again.dim) == ("linear", ("ant", "bee", "cat"), KEY, 5)
    assert again.meta == {"solver": "adamw"}


def test_saved_head_loads_with_torch_alone(tmp_path):
    save_head(tmp_path, head())
    layer = torch.nn.Linear(5, 3)
    layer.load_state_dict(safetensors.torch.load_file(tmp_path / "head.safetensors"))
    X = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    expected = X.astype(float) @ head().tensors["weight"].T.astype(float) + head().tensors["bias"]
    np.testing.assert_allclose(layer(torch.from_numpy(X)).detach().numpy(), expected, atol=1e-5)


def test_logits_and_module_agree_with_float64_on_float16_rows():
    X = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float16)
    expected = X.astype(float) @ head().tensors["weight"].T.astype(float) + head().tensors["bias"]
    logits = head().logits(X)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    module = head().module()
    assert sorted(module.state_dict()) == ["bias", "weight"]
    np.testing.assert_allclose(module(torch.from_numpy(X.astype(np.float32))).detach().numpy(), expected, atol=1e-5)


def test_training_the_module_leaves_the_head_alone():
    fixed = head()
    with torch.no_grad():
        fixed.module().weight.zero_()
    np.testing.assert_array_equal(fixed.tensors["weight"], head().tensors["weight"])


def test_logits_of_rows_of_another_dimension_are_refused():
    with pytest.raises(HeadError, match=r"needs \(rows, 5\)"):
        head().logits(np.zeros((2, 4), dtype=np.float32))


def test_saving_leaves_only_the_two_files(tmp_path):
    save_head(tmp_path, head())
    save_head(tmp_path, head(meta={}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.json", "head.safetensors"]
    assert load_head(tmp_path).meta == {}


def test_class_names_that_are_not_utf8_read_back(tmp_path):
    """A folder's name may hold any bytes."""
    names = (b"\xff\xfe".decode("utf-8", "surrogateescape"), "новый\nряд", "🐝")
    save_head(tmp_path, head(classes=names))
    assert load_head(tmp_path).classes == names


def test_tensors_with_one_bit_turned_are_refused(tmp_path):
    save_head(tmp_path, head())
    data = bytearray((tmp_path / "head.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "head.safetensors").write_bytes(data)
    with pytest.raises(HeadError, match="SHA-256"):
        load_head(tmp_path)


class Bomb:
    """Fails the test when a pickle of it is loaded."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_pickle_is_refused_unread_even_with_its_own_hash(tmp_path):
    save_head(tmp_path, head())
    data = pickle.dumps(Bomb())
    (tmp_path / "head.safetensors").write_bytes(data)
    rewrite(tmp_path, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(HeadError, match="not a safetensors file"):
        load_head(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "format is 'other': 'pipeline-head' is needed"),
        ({"version": 2}, "version is 2: 1 is needed"),
        ({"kind": "forest"}, "'forest' is not known: choose from linear, mlp, cosine"),
        ({"kind": "mlp"}, "0.weight"),
        ({"kind": "cosine"}, "inv_scale"),
        ({"classes": ["ant", "bee"]}, "is needed for these classes"),
        ({"classes": ["ant", "bee", "bee"]}, "2 different"),
        ({"classes": ["ant", "bee", 3]}, r"classes\[2\] is 3: a text"),
        ({"dim": 6}, "is needed for these classes and features"),
        ({"dim": "5"}, "dim is '5': a whole number"),
        ({"key": None}, "key is None: a text"),
        ({"tensors": {}}, "says {}"),
        ({"temperature": 0}, "temperature is 0: a number above 0"),
        ({"temperature": True}, "temperature is True: a finite number"),
        ({"temperature": "1"}, "temperature is '1': a finite number"),
    ],
)
def test_record_that_does_not_fit_is_refused(tmp_path, changes, words):
    save_head(tmp_path, head())
    rewrite(tmp_path, **changes)
    with pytest.raises(HeadError, match=words):
        load_head(tmp_path)


def test_a_temperature_written_as_a_whole_number_is_read(tmp_path):
    save_head(tmp_path, head())
    rewrite(tmp_path, temperature=2)
    assert load_head(tmp_path).temperature == 2.0


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 200_000])
def test_record_that_is_no_json_object_is_refused(tmp_path, text):
    save_head(tmp_path, head())
    (tmp_path / "head.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(HeadError, match=r"head\.json"):
        load_head(tmp_path)


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
def test_missing_file_is_named(tmp_path, name):
    save_head(tmp_path, head())
    (tmp_path / name).unlink()
    with pytest.raises(HeadError, match=f"{name}: No such file"):
        load_head(tmp_path)


def test_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(HeadError, match="cannot write") as caught:
        save_head(tmp_path / "absent", head())
    assert "\n" not in str(caught.value)


def test_failed_write_leaves_the_older_head_whole(tmp_path, monkeypatch):
    """A full disk while the new tensors are written."""
    save_head(tmp_path, head())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(HeadError, match="No space left"):
        save_head(tmp_path, head(meta={"later": True}))
    assert load_head(tmp_path).meta == {"solver": "adamw"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_head_with_numbers_that_are_not_finite_is_refused(value):
    tensors = head().tensors
    tensors["bias"][1] = value
    with pytest.raises(HeadError, match="'bias'"):
        head(tensors=tensors)


def test_head_refuses_features_of_another_key():
    with pytest.raises(
        HeadError, match=r"cache x\.h5 has the settings fingerprint cdcdcdcdcdcd, .* trained on abababababab"
    ):
        require_key(head(), "cd" * 32, "cache x.h5")
    require_key(head(), KEY, "cache x.h5")


def test_classes_are_matched_by_name_not_by_place():
    np.testing.assert_array_equal(match_classes(["a", "b", "10", "9"], ["9", "a", "10"]), [3, 0, 2])


def test_class_that_the_head_does_not_know_is_named():
    with pytest.raises(HeadError, match="'dog'"):
        match_classes(["ant", "bee"], ["bee", "dog"])


def test_head_without_its_record_is_never_published(tmp_path, monkeypatch):
    """The record, written last, is absent or whole."""
    synced = []

    def full_later(descriptor):
        synced.append(descriptor)
        if len(synced) == 3:  # tensors, folder, then the record
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_later)
    with pytest.raises(HeadError, match="No space left"):
        save_head(tmp_path, head())
    assert [p.name for p in tmp_path.iterdir()] == ["head.safetensors"]
    with pytest.raises(HeadError, match=r"head\.json: No such file"):
        load_head(tmp_path)


def draw(**shapes):
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def other(kind, **changes):
    """A head of three classes on five features, of another kind."""
    if kind == "cosine":
        return head(kind=kind, tensors={**draw(weight=(3, 5), scale=(1,), mean=(5,), inv_scale=(5,)), **changes})
    shapes = {
        "0.weight": (4, 5),
        "0.bias": (4,),
        "2.weight": (6, 4),
        "2.bias": (6,),
        "4.weight": (3, 6),
        "4.bias": (3,),
    }
    return head(kind=kind, tensors={**draw(**shapes), **changes})


def test_mlp_loads_with_torch_alone_and_its_logits_are_the_same(tmp_path):
    save_head(tmp_path, other("mlp"))
    nn = torch.nn
    plain = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "head.safetensors"))
    X = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float16)
    expected = plain.double()(torch.from_numpy(X).double()).detach().numpy()
    again = load_head(tmp_path)
    assert again.kind == "mlp"
    np.testing.assert_allclose(again.logits(X), expected, atol=1e-5)
    np.testing.assert_allclose(again.module()(torch.from_numpy(X).float()).detach().numpy(), expected, atol=1e-5)


def test_cosine_logits_are_the_scaled_cosines_of_standardised_rows(tmp_path):
    save_head(tmp_path, other("cosine"))
    again = load_head(tmp_path)
    t = {name: tensor.astype(float) for name, tensor in again.tensors.items()}
    X = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    Z = (X - t["mean"]) * t["inv_scale"]
    norms = np.outer(np.linalg.norm(Z, axis=1), np.linalg.norm(t["weight"], axis=1))
    expected = t["scale"] * (Z @ t["weight"].T) / norms
    np.testing.assert_allclose(again.logits(X), expected, atol=1e-5)
    module = again.module()
    np.testing.assert_allclose(module(torch.from_numpy(X)).detach().numpy(), expected, atol=1e-5)
    assert {name for name, _ in module.named_parameters()} == {"weight", "scale"}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mlp", draw(**{"2.weight": (6, 5)})),
        ("mlp", draw(**{"4.bias": (4,)})),
        ("mlp", draw(**{"0.weight": (0, 5), "0.bias": (0,), "2.weight": (6, 0)})),
        ("mlp", draw(**{"0.bias": ()})),
        ("mlp", draw(**{"6.weight": (3, 3)})),
        ("cosine", draw(scale=())),
        ("cosine", draw(mean=(4,))),
        ("cosine", draw(bias=(3,))),
        ("linear", draw(scale=(1,))),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(kind, changes):
    with pytest.raises(HeadError, match="is needed for these classes and features"):
        other(kind, **changes)


def test_mlp_of_one_layer_is_refused():
    """That is a linear head under another name."""
    with pytest.raises(HeadError, match="is needed for these classes"):
        head(kind="mlp", tensors=draw(**{"0.weight": (3, 5), "0.bias": (3,)}))
