"""Rules, globs and pairs: which layers are compared."""

from __future__ import annotations

import json

import pytest
import torch
from networks import N, distance, hooks, mlp
from torch import nn

from pyguide.guidance import Guidance, Pair
from pyguide.guidance.rules import paper_pairs


class _Stages(nn.Module):
    """Stages of blocks that run in the reverse of the order in which they are registered."""

    def __init__(self, stages: int, blocks: int, width: int):
        super().__init__()
        torch.manual_seed(stages)
        self.head = nn.Linear(width, 3)
        self.relu = nn.ReLU()
        self.stages = nn.ModuleList(
            nn.ModuleDict({f"fc{b}": nn.Linear(width, width) for b in range(blocks)})
            for _ in range(stages)
        )
        self.stem = nn.Linear(6, width)

    def forward(self, x):
        x = self.stem(x)
        for stage in reversed(self.stages):
            for block in stage.values():
                x = self.relu(block(x))
        return self.head(x)


def _pairs(pairs, target: nn.Module, guide: nn.Module, x: torch.Tensor) -> list[tuple[str, str]]:
    """As the first loss() resolves them, which must be as an example does."""
    lazily = Guidance(target, guide, pairs=pairs)
    planned = [(row.target, row.guide) for row in lazily.plan(x).rows]
    with lazily.capture():
        target(x)
    lazily.loss(x)
    lazily.close()
    at_once = Guidance(target, guide, pairs=pairs, example=x)
    at_once.close()
    assert at_once.pairs == lazily.pairs == planned
    assert hooks(target) == hooks(guide) == 0
    return lazily.pairs


# --- globs ------------------------------------------------------------------------------------


def test_globs_pair_one_by_one_in_execution_order(x):
    target, guide = _Stages(2, 2, 5), _Stages(4, 1, 7)
    assert _pairs([("stages.*.fc?", "stages.*.*")], target, guide, x) == [
        ("stages.1.fc0", "stages.3.fc0"),
        ("stages.1.fc1", "stages.2.fc0"),
        ("stages.0.fc0", "stages.1.fc0"),
        ("stages.0.fc1", "stages.0.fc0"),
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("st[a-e]*", ["stem"]),
        ("stages.0.**", ["stages.0.fc0", "stages.0.fc1"]),
        ("**.fc1", ["stages.1.fc1", "stages.0.fc1"]),
        ("module.stages.*.fc[!0]", ["stages.1.fc1", "stages.0.fc1"]),
        ("relu*", ["relu:0", "relu:1", "relu:2", "relu:3"]),
    ],
)
def test_what_a_glob_matches(x, pattern, expected):
    """Calls of modules: a ModuleList is none, `*` stays in one part of a path."""
    target = _Stages(2, 2, 5)
    assert _pairs([(pattern, "0")], target, mlp(6, 5, 3), x) == [(path, "0") for path in expected]


def test_globs_one_to_many_and_plain_pairs_keep_the_order_of_the_list(x):
    target, guide = _Stages(1, 2, 5), _Stages(2, 1, 7)
    pairs = [("head", "stages.*.*"), ("stem", "stem"), Pair("**.fc*", "head")]
    assert _pairs(pairs, target, guide, x) == [
        ("head", "stages.1.fc0"),
        ("head", "stages.0.fc0"),
        ("stem", "stem"),
        ("stages.0.fc0", "head"),
        ("stages.0.fc1", "head"),
    ]


def test_a_module_with_two_paths_matches_once(x):
    target = _Stages(1, 1, 5)
    target.layers = nn.ModuleList([target.stem, target.head])
    assert _pairs([("layers.*", "0")], target, mlp(6, 5, 3), x) == [
        ("layers.0", "0"),
        ("layers.1", "0"),
    ]
    assert _pairs([("**", "0")], target, mlp(6, 5, 3), x)[0] == ("stem", "0")


def test_globs_that_do_not_fit_raise(x):
    target, guide = _Stages(2, 2, 5), _Stages(3, 1, 7)
    with pytest.raises(
        ValueError, match=r"'stages\.\*\.\*' means 4 layers of the target and 'sta.*3"
    ):
        Guidance(target, guide, pairs=[("stages.*.*", "stages.*.*")], example=x)
    with pytest.raises(ValueError, match=r"no layer of the guide matches 'blocks\.\*'"):
        Guidance(target, guide, pairs=[("stem", "blocks.*")])
    with pytest.raises(ValueError, match=r"no layer of the target matches 'stages\.\*'"):
        Guidance(target, guide, pairs=[("stages.*", "stem")])
    target.unused = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match=r"'unused' of the target match '\*', but gave no"):
        Guidance(target, guide, pairs=[("*", "stem")], example=x)
    assert hooks(target) == hooks(guide) == 0


# --- the paper's mapping ----------------------------------------------------------------------


@pytest.mark.parametrize(("targets", "guides"), [(48, 21), (5, 12), (3, 3), (7, 2), (4, 1), (1, 4)])
def test_the_papers_mapping(targets, guides):
    """As its code builds it: a dict by target layer, so that the last guide layer wins."""
    step = (targets - 1) / (guides - 1) if guides > 1 else 1
    distances = {}
    every = []
    for i in range(guides):
        t = min(round(i * step), targets - 1)
        distances[t] = i
        every.append((t, i))
    t, g = range(targets), range(guides)
    assert paper_pairs(t, g, every_guide_layer=True) == every
    assert paper_pairs(t, g, every_guide_layer=False) == list(distances.items())


def test_halves_go_to_the_even_layer_in_the_papers_mapping():
    assert paper_pairs("abcd", "123", every_guide_layer=False) == [
        ("a", "1"),
        ("c", "2"),
        ("d", "3"),
    ]
    assert paper_pairs("abcdef", "123", every_guide_layer=False)[1] == ("c", "2")


class _PaperZoo(nn.Module):
    class Own(nn.Linear):
        pass

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(1, 2, 1), nn.Conv2d(2, 2, 1)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc, self.own, self.norm = nn.Linear(2, 4), self.Own(4, 4), nn.LayerNorm(4)
        self.gru, self.rnn = nn.GRU(4, 4, batch_first=True), nn.RNN(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.batch_norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.conv2(self.conv1(x[:, None]).unsqueeze(-1))
        h = self.own(self.fc(self.flatten(self.pool(h))))
        h = self.norm(self.norm(h))[:, None]
        h = self.rnn(self.gru(h)[0])[0]
        h = self.attention(h, h, h)[0][:, 0]
        return self.head(self.batch_norm(h))


def test_the_layers_that_the_papers_code_compares(x):
    """Its list of classes, without subclasses; every call; nothing for the logits."""
    guide = mlp(6, 5, 3)  # one layer: on the first of the target
    assert _pairs("paper", _PaperZoo(), guide, x) == [("conv2", "0")]
    every = [pair[1] for pair in _pairs("paper-sum", mlp(6, 5, 3), _PaperZoo(), x)]
    assert every == ["conv2", "pool", "fc", "norm:0", "norm:1", "rnn", "attention"]


def test_the_paper_rules_differ_where_guide_layers_collide(x):
    target, guide = mlp(6, 8, 7, 3), mlp(6, 5, 5, 5, 5, 3)
    assert _pairs("paper", target, guide, x) == [("0", "2"), ("2", "6")]
    assert _pairs("paper-sum", target, guide, x) == [
        ("0", "0"),
        ("0", "2"),
        ("2", "4"),
        ("2", "6"),
    ]


# --- the first and last layers ------------------------------------------------------------------


def test_the_first_and_last_pairs(x):
    target, guide = mlp(6, *[8] * 9, 3), mlp(6, *[5] * 5, 3)
    even = _pairs("even", target, guide, x)
    assert [g for _, g in even] == ["0", "2", "4", "6", "8"]  # every layer of the guide
    for k in (1, 3, 5):
        assert _pairs(f"first:{k}", target, guide, x) == even[:k]
        assert _pairs(f"last:{k}", target, guide, x) == even[-k:]
    with pytest.raises(ValueError, match='"last:6" asks for 6 of the pairs of "even", which are 5'):
        Guidance(target, guide, pairs="last:6", example=x)


@pytest.mark.parametrize("pairs", ["first", "first:0", "last:-1", "first:2.5", "papers", "evenly"])
def test_unknown_rules_raise(pairs):
    with pytest.raises(ValueError, match=f'pairs must be .*"first:k".*got {pairs!r}'):
        Guidance(mlp(6, 8, 3), mlp(6, 5, 3), pairs=pairs)


@pytest.mark.parametrize("pairs", ["paper", "paper-sum", "first:1", "last:1"])
def test_rules_without_candidates_raise(x, pairs):
    with pytest.raises(RuntimeError, match=f'"{pairs}" found no layer to pair in the guide'):
        Guidance(mlp(6, 8, 3), mlp(6, 3), pairs=pairs, example=x)


# --- Pair ---------------------------------------------------------------------------------------


def test_pairs_and_tuples_are_the_same(x):
    target, guide = mlp(6, 8, 7, 3), mlp(6, 5, 4, 3)
    pairs = [Pair("0", "2"), ("2", "0"), ["0", "2"]]
    guidance = Guidance(target, guide, pairs=pairs)
    with guidance.capture():
        target(x)
    guidance.loss(x)
    ts, gs = (target[0](x), target[:3](x)), (guide[0](x), guide[:3](x))
    expected = [distance(ts[0], gs[1]), distance(ts[1], gs[0]), distance(ts[0], gs[1])]
    assert guidance.last.tolist() == pytest.approx(expected, abs=1e-6)
    assert guidance.pairs == [("0", "2"), ("2", "0"), ("0", "2")]


def test_a_method_as_extract_of_several_globs(x):
    """Each access of a method makes another object."""

    class Half:
        def of(self, output):
            return output[:, :4]

    half, target, guide = Half(), mlp(6, 8, 7, 3), mlp(6, 5, 4, 3)
    pairs = [Pair("?", "0", extract=half.of), Pair("2", "0", extract=half.of)]
    guidance = Guidance(target, guide, pairs=pairs)
    with guidance.capture():
        target(x)
    guidance.loss(x)
    expected = [distance(target[: i + 1](x)[:, :4], guide[0](x)[:, :4]) for i in (0, 1, 2, 3, 4, 2)]
    assert guidance.last.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_pair_takes_two_strings():
    for bad in ((0, "0"), ("0", None)):
        with pytest.raises(ValueError, match="a pair is two strings"):
            Pair(*bad)
    with pytest.raises(ValueError, match="a pair is two strings"):
        Guidance(mlp(6, 8, 3), mlp(6, 5, 3), pairs=["0:0"])


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", ["even", "paper", "last:1", [("*", "*")], [Pair("?", "0")]])
def test_a_resumed_run_has_the_same_pairs_and_losses(x, pairs):
    target, guide = mlp(6, 8, 7, 3), mlp(6, 5, 4, 3)

    def step(guidance: Guidance) -> torch.Tensor:
        with guidance.capture():
            target(x)
        return guidance.loss(x)

    first = Guidance(target, guide, pairs=pairs)
    loss = step(first)
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    resumed = Guidance(target, guide, pairs=pairs)
    resumed.load_state_dict(state)
    assert torch.equal(step(resumed), loss)
    assert resumed.pairs == first.pairs


def test_a_state_keeps_the_options_of_globs():
    tokens = torch.randn(N, 4, 6)
    target, guide = mlp(6, 8, 7, 3), mlp(6, 5, 4, 3)
    pairs = [Pair("?", "?", per_token=True, extract=torch.abs)]
    losses = []
    state = None
    for _ in range(2):
        guidance = Guidance(target, guide, pairs=pairs)
        if state is not None:
            guidance.load_state_dict(state)
        with guidance.capture():
            target(tokens)
        losses.append(guidance.loss(tokens))
        state = guidance.state_dict()
        guidance.close()
    assert torch.equal(*losses)


def test_a_state_of_other_globs_raises(x):
    target, guide = mlp(6, 8, 7, 3), mlp(6, 5, 4, 3)
    state = Guidance(target, guide, pairs=[("*", "0")], example=x).state_dict()
    resolved = Guidance(target, guide, pairs=[("*", "2")], example=x)
    with pytest.raises(ValueError, match="the state has the pairs"):
        resolved.load_state_dict(state)
    lazily = Guidance(target, guide, pairs=[("*", "2")])
    lazily.load_state_dict(state)
    with lazily.capture():
        target(x)
    with pytest.raises(ValueError, match="the state has the pairs"):
        lazily.loss(x)
