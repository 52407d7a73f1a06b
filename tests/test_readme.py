"""The README's Python code runs as it stands, with stand-ins for what a reader brings."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import pyguide

README = Path(__file__).resolve().parent.parent / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def value(call: ast.expr, names: dict[str, object]) -> Tensor:
    return eval(compile(ast.Expression(call), "README", "eval"), names)


def reference_loss(reduction: str):
    assert reduction == "mean"
    return lambda xs, ys: (1 - pyguide.reference.cka_pairs(xs, ys)).mean()


def test_the_training_loop_trains_a_guided_network():
    (block,) = (block for block in python_blocks() if "guidance.capture()" in block)
    target = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 10))
    guide = nn.Sequential(nn.Linear(40, 16), nn.Tanh(), nn.Linear(16, 10))
    before = [parameter.clone() for parameter in target.parameters()]
    names = {
        "MyDeepNetwork": lambda: target,
        "MyConvNet": lambda: guide,
        "optimizer": torch.optim.SGD(target.parameters(), lr=0.1),
        "loader": [(torch.randn(32, 40), torch.randint(10, (32,))) for _ in range(2)],
    }
    exec(compile(block, "README", "exec"), names)
    pairs = zip(before, target.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in pairs)
    assert names["guidance"].log_dict()
    assert names["guidance"].state_dict()["step"] == 2


@pytest.mark.slow
def test_the_trainers_train_guided_networks(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning.pytorch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in python_blocks() if "GuidanceCallback" in block)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 10))

        def forward(self, input, labels):
            logits = self.layers(input)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch):
            return self.model(*batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = [{"input": torch.randn(40), "labels": i % 10} for i in range(64)]
    batch = torch.stack([sample["input"] for sample in data]), torch.arange(64) % 10
    names = {
        "pyguide": pyguide,
        "lightning": lightning,
        "guide": nn.Sequential(nn.Linear(40, 16), nn.Tanh(), nn.Linear(16, 10)),
        "module": Module(),
        "loader": torch.utils.data.DataLoader([batch] * 2, batch_size=None),
        "model": Model(),
        "args": transformers.TrainingArguments("out", max_steps=3, report_to="none"),
        "data": data,
    }
    exec(compile(block, "README", "exec"), names)
    assert names["callback"].guidance.steps == 2
    assert names["guidance"].steps == 3


def test_console_blocks_print_what_they_say():
    blocks = re.findall(r"^```pycon\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    names = {"pyguide": pyguide, "torch": torch}
    for block in blocks:
        example = doctest.DocTestParser().get_doctest(block, names, "README", None, 0)
        assert doctest.DocTestRunner().run(example).failed == 0


def test_the_measurements_are_the_references():
    (block,) = (block for block in python_blocks() if "pyguide.cka_matrix" in block)
    names = {
        "pyguide": pyguide,
        "x": torch.randn(32, 3, 8),
        "y": torch.randn(32, 50),
        "xs": [torch.randn(32, 4, width) for width in (8, 20, 5)],
        "ys": [torch.randn(32, 4, width) for width in (9, 40, 6)],
    }
    calls = [statement.value for statement in ast.parse(block).body]
    assert len(calls) == 7
    reference = SimpleNamespace(**vars(pyguide.reference), CKALoss=reference_loss)
    for call in calls:
        expected = value(call, {**names, "pyguide": reference})
        torch.testing.assert_close(value(call, names), expected)
