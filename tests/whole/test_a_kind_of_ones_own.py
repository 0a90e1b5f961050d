"""A kind of head in one file and one entry, through every stage: a linear head with a learned temperature.

It is one linear layer in the end, so it is fine-tuned and exported as such; its tensors are not those of that layer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline import evaluate, export, extract, finetune, open_cache, predict, search, train
from pipeline.base.errors import ConfigError
from pipeline.cli.main import main
from pipeline.heads.artifact import load_head
from pipeline.heads.kinds import KINDS
from pipeline.heads.kinds.batched import Parameters, tall, tall_gradient
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.noise import Mix, Noise
from pipeline.heads.standardize import Standardization, fold

Tensors = Mapping[str, npt.NDArray[np.float32]]
START = 5.0  # far from 0: whoever takes the weights for the layer is off by a factor of 148


class Tempered:
    """What would be the file of the kind: logits exp(t) · (W x + b); weight (C, D), bias (C,), temperature (1,)."""

    SPACE: Mapping[str, Any] | None = {"kind": ["tempered"], "lr": {"low": 1e-5, "high": 1e-3, "log": True}}

    @staticmethod
    def hidden(config: MinibatchConfig) -> tuple[int, ...]:
        return ()

    @staticmethod
    def heads(configs: Sequence[MinibatchConfig], dim: int, n_classes: int, device: torch.device) -> TemperedHeads:
        k = len(configs)
        shapes = {"weight": (k, n_classes, dim), "bias": (k, n_classes)}
        zeros = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        return TemperedHeads({**zeros, "temperature": torch.full((k, 1), START, device=device)})

    @staticmethod
    def folded(tensors: Tensors, s: Standardization) -> dict[str, npt.NDArray[np.float32]]:
        weight, bias = fold(tensors["weight"], tensors["bias"], s)
        return {**tensors, "weight": weight, "bias": bias}

    @staticmethod
    def shapes(found: Mapping[str, tuple[int, ...]], dim: int, n_classes: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (n_classes, dim), "bias": (n_classes,), "temperature": (1,)}

    @staticmethod
    def logits(tensors: Tensors, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = np.exp(tensors["temperature"]) * (x @ tensors["weight"].T + tensors["bias"])
        return found

    @staticmethod
    def module(tensors: Tensors) -> TemperedLinear:
        return TemperedLinear(*reversed(tensors["weight"].shape))

    @staticmethod
    def layer(tensors: Tensors) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        factor = np.exp(tensors["temperature"])
        return factor * tensors["weight"], factor * tensors["bias"]


class TemperedHeads:
    """weight (K, C, D), bias (K, C), temperature (K, 1)."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def forward(self, x: torch.Tensor, mix: Mix | None = None, noise: Noise | None = None) -> torch.Tensor:
        self._x, self._mix = x, mix
        plain = tall(self.parameters["weight"], x, self.parameters["bias"])
        self._plain = plain if mix is None else mix.forward(plain)
        return self._plain * self._factor

    def backward(self, gradient: torch.Tensor) -> Parameters:
        inner = gradient * self._factor
        unmixed = inner if self._mix is None else self._mix.backward(inner)
        temperature = (inner * self._plain).sum(dim=(1, 2)).unsqueeze(1)
        return {"weight": tall_gradient(unmixed, self._x), "bias": inner.sum(dim=2), "temperature": temperature}

    @property
    def _factor(self) -> torch.Tensor:
        return self.parameters["temperature"].exp().unsqueeze(2)


class TemperedLinear(nn.Linear):
    """The head as a module."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__(dim, n_classes)
        self.temperature = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.temperature.exp() * super().forward(x)


@pytest.fixture(scope="module", autouse=True)
def tempered() -> Any:
    """The file where it would lie, and the entry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pipeline.heads.kinds.tempered", Tempered)
        patch.setitem(KINDS, "tempered", ())
        yield


@pytest.fixture(scope="module")
def made(photos: Path, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A cache and a head of the kind."""
    root = tmp_path_factory.mktemp("workspace")
    cache = extract(photos, workspace=root, **quick).cache
    head = train(cache, solver="adamw", kind="tempered", batch_size=8, lr=1e-4, label_smoothing=0.1, workspace=root)
    return SimpleNamespace(root=root, cache=cache, head=head)


def test_its_gradients_are_those_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (2, 3, 7), "bias": (2, 3), "temperature": (2, 1)}
    group = TemperedHeads({n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()})
    x, towards = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((5, 7), (2, 3, 5)))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in group.parameters.items()}
    plain = torch.einsum("kcd,nd->kcn", leaves["weight"], x) + leaves["bias"].unsqueeze(2)
    logits = leaves["temperature"].exp().unsqueeze(2) * plain
    torch.testing.assert_close(group.forward(x), logits.detach())
    (logits * towards).sum().backward()
    for name, gradient in group.backward(towards).items():
        torch.testing.assert_close(gradient, leaves[name].grad)


def test_the_head_its_module_and_its_layer_say_the_same(made: SimpleNamespace) -> None:
    head, rows = load_head(made.head.run), open_cache(made.cache).split("val")
    assert (head.kind, sorted(head.tensors)) == ("tempered", ["bias", "temperature", "weight"])
    assert abs(float(head.tensors["temperature"][0]) - START) > 1e-4, "it has learned"
    X = np.array(rows.X, np.float32)
    logits = head.logits(X)
    with torch.inference_mode():
        np.testing.assert_allclose(head.module()(torch.from_numpy(X)).numpy(), logits, rtol=1e-4, atol=1e-3)
    assert head.layer is not None
    np.testing.assert_allclose(X @ head.layer[0].T + head.layer[1], logits, rtol=1e-4, atol=1e-3)
    assert made.head.val == float((logits.argmax(axis=1) == rows.y).mean()) > 0.8


def test_a_search_tries_it_and_what_it_chose_is_fine_tuned(made: SimpleNamespace) -> None:
    found = search(made.cache, space="tempered", trials=4, epochs=4, workspace=made.root)
    assert (load_head(found.run).kind, found.trials) == ("tempered", 4)
    assert evaluate(found.run, workspace=made.root).test["n"] == 9
    tuned = finetune(found.run, train="head", epochs=1, workspace=made.root)  # its certificate goes through the images
    assert evaluate(tuned.run, workspace=made.root).test["n"] == 9


def test_it_predicts_and_is_exported_as_one_layer(made: SimpleNamespace, photos: Path) -> None:
    found = predict(made.head.run, photos, workspace=made.root)
    assert np.mean([p.class_name == Path(p.path).parent.name for p in found]) > 0.8
    out = export(made.head.run, format="state_dict", workspace=made.root).file
    head = load_head(made.head.run)
    assert head.layer is not None
    np.testing.assert_array_equal(safetensors.torch.load_file(out)["fc.weight"].numpy(), head.layer[0])


def test_the_command_line_knows_it(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(made.cache), "--solver", "adamw", "--epochs", "2", "--workspace", str(made.root)]
    assert main([*words, "--kind", "tempered"]) == 0
    assert main(["train", "--help"]) == 0
    assert "{linear,mlp,cosine,tempered}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="choose from linear, mlp, cosine, tempered"):
        train(made.cache, solver="adamw", kind="cold", workspace=made.root)
