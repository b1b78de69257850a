"""Executors: the same outcomes, wherever candidates train."""

import concurrent.futures
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from labkit.data import Dataset
from labkit.study import executor as module
from labkit.study.executor import Executor, LocalExecutor, Outcomes, Shares, Task
from labkit.study.record import Candidate, Outcome
from labkit.study.search import search
from labkit.training import TrainSettings, train
from labkit.transform import Plan, apply, initialise

CANDIDATES = [
    Candidate(Plan((("seq_blocks_2", a), ("seq_blocks_5", b))), seed)
    for a, b, seed in ((8, 8, 0), (16, 4, 0), (4, 9, 1), (8, 8, 1))
]


def alone(task: Task, candidate: Candidate) -> tuple[list[dict[str, float]], nn.Module]:
    """What a candidate becomes by the loop itself."""
    network = initialise(apply(task.model, candidate.plan, channels=task.channels), candidate.seed)
    return train(network, task.data, task.settings, seed=candidate.seed), network


def check(task: Task, outcomes: Sequence[Outcome]) -> None:
    assert {outcome.candidate for outcome in outcomes} == set(CANDIDATES)
    for outcome in outcomes:
        history, network = alone(task, outcome.candidate)
        assert outcome.failure is None
        assert outcome.history[-1] == pytest.approx(history[-1], abs=1e-6)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(outcome.weights[name], tensor, atol=1e-5, rtol=1e-4)


def test_together(task: Task, stacks: list[int]) -> None:
    check(task, list(LocalExecutor().run(task, [CANDIDATES])))
    assert stacks == [4]


def test_a_stack_is_as_wide_as_the_memory_allows(
    task: Task, stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "stack_width", lambda *_: 3)
    check(task, list(LocalExecutor().run(task, [CANDIDATES])))
    assert stacks == [3]  # the fourth by itself


def test_one_by_one_where_that_is_faster(
    task: Task, stacks: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "step_seconds", lambda *_: (0.5, 0.25))
    caplog.set_level("INFO", "labkit")
    local = LocalExecutor()
    assert local.stacks
    check(task, list(local.run(task, [CANDIDATES])))
    list(local.run(task, [CANDIDATES]))
    assert stacks == []
    assert not local.stacks
    said = "networks train one by one: a step of 4 takes 0.25 s so, and 0.5 s in a stack"
    assert caplog.text.count(said) == 1  # once a search


def test_of_a_large_stack_only_the_first_networks_are_timed(
    task: Task, stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []
    monkeypatch.setattr(module, "MOST_TIMED", 3)
    monkeypatch.setattr(
        module, "step_seconds", lambda networks, *_: timed.append(len(networks)) or (1, 2)
    )
    check(task, list(LocalExecutor().run(task, [CANDIDATES])))
    assert timed == [3]
    assert stacks == [4]


def test_what_was_slower_in_a_stack_is_measured_again(
    task: Task, stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([(2, 1), (2, 1), (1, 2)])  # by the first, second and fourth share
    monkeypatch.setattr(module, "step_seconds", lambda *_: next(measured))
    local = LocalExecutor()
    for stackable in (False, False, False, True, True):
        list(local.run(task, [CANDIDATES]))
        assert local.stacks == stackable
    assert stacks == [4, 4]


@pytest.mark.parametrize("kind", ["norm", "hook"])
def test_what_cannot_be_stacked_trains_alone_and_the_log_says_why(
    blobs: Dataset, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A network that mixes channels; and one with a hook, which a stack would pass over."""
    middle = nn.Softmin(dim=1) if kind == "norm" else nn.ReLU()
    model = nn.Sequential(nn.Linear(16, 10), middle, nn.Linear(10, 5))
    if kind == "hook":
        model[1].register_forward_hook(lambda module, inputs, output: output.tanh())
    results = search(
        model=model, data=blobs, widths=[0.5, 1, 3], trials=6, epochs=1, progress=False
    )
    said = "'_1' (Softmin) mixes channels" if kind == "norm" else "hook"
    assert caplog.text.count("networks train one by one: ") == 1
    assert said in caplog.text
    settings = TrainSettings(max_epochs=1)
    for number in results.networks.index:
        network = initialise(apply(model, results.plan(number), example_input=blobs.x_val[:1]), 0)
        accuracy = train(network, blobs, settings)[-1]["accuracy"]
        assert results.trials["accuracy"][number] == accuracy


def test_a_stack_that_runs_out_of_memory_trains_one_by_one(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(module, "step_seconds", lambda *_: (1, 2))
    monkeypatch.setattr(module, "fit_stack", out_of_memory)
    check(task, list(LocalExecutor().run(task, [CANDIDATES])))
    assert "4 networks train one by one: OutOfMemoryError('no memory is left')" in caplog.text


def test_a_network_that_cannot_be_built_again_fails_alone(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    def lacks_memory(*_: object, **__: object) -> Any:
        monkeypatch.setattr(Task, "build", out_of_memory)
        return out_of_memory()

    monkeypatch.setattr(module, "step_seconds", lambda *_: (1, 2))
    monkeypatch.setattr(module, "fit_stack", lacks_memory)
    outcomes = list(LocalExecutor().run(task, [CANDIDATES]))
    assert [outcome.candidate for outcome in outcomes] == CANDIDATES
    assert all(outcome.failure is not None for outcome in outcomes)


def test_a_bug_of_the_stack_is_said_and_ends_no_search(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise KeyError("shape")

    monkeypatch.setattr(module, "step_seconds", lambda *_: (1, 2))
    monkeypatch.setattr(module, "fit_stack", bug)
    check(task, list(LocalExecutor().run(task, [CANDIDATES])))
    assert "4 networks train one by one: KeyError('shape')" in caplog.text


@pytest.mark.parametrize("together", [True, False])
def test_divergence_is_the_candidates_own(
    task: Task, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "step_seconds", lambda *_: (1, 2) if together else (2, 1))
    wild = TrainSettings(max_epochs=2, learning_rate=1e200, optimizer="sgd")
    outcomes = list(LocalExecutor().run(replace(task, settings=wild), [CANDIDATES]))
    assert len(outcomes) == len(CANDIDATES)
    for outcome in outcomes:
        assert outcome.failure is not None
        assert outcome.failure.kind == "diverged"
        assert outcome.failure.message.startswith("training diverged: the loss is not finite")


def test_a_network_that_cannot_be_built_does_not_end_the_others(task: Task) -> None:
    bad = Candidate(Plan((("seq_blocks_2", 8), ("nowhere", 8))), 0)
    outcomes = {o.candidate: o for o in LocalExecutor().run(task, [[bad, CANDIDATES[0]]])}
    assert outcomes[CANDIDATES[0]].failure is None
    failure = outcomes[bad].failure
    assert failure is not None
    assert (failure.kind, failure.message[:33]) == ("training", "plan: it is for another network; ")


def test_an_executor_of_ones_own_is_one_class(tables: dict[str, Any], blobs: Dataset) -> None:
    class Backwards(Executor):
        def run(self, task: Task, shares: Shares, **_: Any) -> Outcomes:
            for share in shares:
                for candidate in reversed(share):
                    history, network = alone(task, candidate)
                    yield Outcome(candidate, history, network.state_dict())

    results = search(tables, data=blobs, executor=Backwards(), progress=False)
    assert len(results.trials) == 8
    assert not results.best().training


def test_tasks_and_candidates_and_outcomes_are_picklable(task: Task) -> None:
    again = pickle.loads(pickle.dumps(task))
    assert again.channels.free == task.channels.free
    assert pickle.loads(pickle.dumps(CANDIDATES)) == CANDIDATES
    (outcome,) = LocalExecutor().run(task, [CANDIDATES[:1]])
    assert outcome.network is not None
    sent = pickle.loads(pickle.dumps(outcome))
    assert sent.network is None
    assert sent.history == outcome.history


def test_epochs_are_told(task: Task, stacks: list[int]) -> None:
    told: list[int] = []
    options: Any = {"on_epoch": lambda metrics: told.append(len(metrics))}
    list(LocalExecutor().run(task, [CANDIDATES], **options))
    assert told == [4, 4]
    told.clear()
    list(LocalExecutor().run(task, [CANDIDATES[:1]], **options))
    assert told == [1, 1]


class Picky(nn.Module):
    """Raises an error of some kind where it meets 16 channels."""

    def __init__(self, error: type[Exception]):
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] == 16:
            raise self.error("sixteen")
        return torch.relu(x)


class Resets(nn.Linear):
    """Raises when it is given fresh weights for 16 channels."""

    def reset_parameters(self) -> None:
        if self.out_features == 16:
            raise ValueError("sixteen")
        super().reset_parameters()


class PickyReLU(Picky, nn.ReLU):
    """The same of a layer that labkit knows."""


def picky_networks() -> list[nn.Module]:
    return [
        nn.Sequential(first, middle, nn.Linear(8, 5))
        for first, middle in (
            (nn.Linear(16, 8), PickyReLU(ValueError)),
            (nn.Linear(16, 8), PickyReLU(RuntimeError)),
            (nn.Linear(16, 8), PickyReLU(TypeError)),
            (nn.Linear(16, 8), PickyReLU(AssertionError)),
            (Resets(16, 8), nn.ReLU()),
        )
    ]


@pytest.mark.parametrize(
    "model",
    picky_networks(),
    ids=["ValueError", "RuntimeError", "TypeError", "AssertionError", "fresh weights"],
)
@pytest.mark.parametrize("pooled", [False, True])
def test_a_network_that_raises_at_some_widths_fails_there_and_only_there(
    blobs: Dataset, model: nn.Module, pooled: bool
) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1) if pooled else None
    results = search(
        model=model, data=blobs, widths=[0.5, 1, 2, 4], trials=12, epochs=1, progress=False,
        executor=pool,
    )  # fmt: skip
    if pool is not None:
        pool.shutdown()
    table = results.trials
    assert {"_0: 8", "_0: 16", "_0: 32"} <= set(table["network"])
    assert (table["failure"].notna() == (table["network"] == "_0: 16")).all()
    assert table["failure"].dropna().str.contains("sixteen").all()


def test_threads_that_build_do_not_disturb_each_others_weights(task: Task) -> None:
    """PyTorch's generator is one for the process; weights are drawn from it."""
    wanted = [task.build(candidate).state_dict() for candidate in CANDIDATES]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            built = pool.map(task.build, CANDIDATES * 8)
            for network, expected in zip(built, wanted * 8):
                for name, tensor in network.state_dict().items():
                    assert torch.equal(tensor, expected[name])
