"""The store: whole trials or none, and what a storage gives back."""

import math
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from labkit.errors import LabkitError
from labkit.study.limits import Limits
from labkit.study.proposals import make_sampler
from labkit.study.record import Failure, FailureKind, Record, Source
from labkit.study.results import Results
from labkit.study.spaces import ChannelMultiplierSpace
from labkit.study.store import Store
from labkit.study.studies import open_study, read_trials
from labkit.transform import get_model
from tests.study.conftest import description


@pytest.fixture(scope="module")
def space() -> ChannelMultiplierSpace:
    table = {"default": {"config": {"channel_multiplier": [0.5, 1, 2, 4]}}}
    return ChannelMultiplierSpace(get_model("jsc-toy"), {"by": "name"}, table)


def make(storage: Path | str | None, space: ChannelMultiplierSpace, **options: Any) -> Store:
    given: dict[str, Any] = {"name": "s", "description": description(), "sampler": "random"}
    given |= {
        "seed": 0,
        "known": lambda plan: [math.nan, 1.0],
        "limits": Limits({}, lambda plan: {}),
    }
    return Store(storage, space=space, **(given | options))


def run(store: Store, n: int) -> None:
    """Asks and tells without training: accuracy is the share of the widest."""
    for _ in range(n):
        (asked,) = store.ask(1)
        pass_config = store.space.sampled_config(asked.indices)
        plan = store.space.resolve(pass_config)
        if plan in store.known:
            record = store.known[plan].record.looked_up()
        else:
            widths = plan.to_dict()
            metrics = {
                "accuracy": sum(widths.values()) / 64,
                "total_flops": float(min(widths.values())),
            }
            record = Record(
                pass_config=pass_config, widths=widths, source=Source.TRAINED,
                trained_in=len(store.trials), software_metrics=metrics, scaled_metrics=metrics,
            )  # fmt: skip
        store.tell(asked, record, list(record.scaled_metrics.values()))


def test_what_was_told_comes_back_from_the_file(
    space: ChannelMultiplierSpace, tmp_path: Path
) -> None:
    store = make(tmp_path / "study.db", space)
    run(store, 12)
    assert read_trials(open_study(tmp_path)) == store.trials
    again = make(tmp_path / "study.db", space)
    assert again.trials == store.trials
    assert again.known == store.known
    assert again.front == store.front
    assert again.tried == store.tried
    reread = Results.from_study(open_study(tmp_path))
    in_memory = Results(store.trials, store.description)
    assert reread.trials.equals(in_memory.trials)


def test_a_storage_of_any_kind_holds_the_same(
    space: ChannelMultiplierSpace, tmp_path: Path
) -> None:
    stores = [make(None, space), make(f"sqlite:///{tmp_path}/all.db", space)]
    for store in stores:
        run(store, 10)
    first, second = (
        [(t.number, t.params, t.values, t.record) for t in store.trials] for store in stores
    )
    assert first == second


def test_a_trial_is_one_transaction(space: ChannelMultiplierSpace, tmp_path: Path) -> None:
    """What another connection sees after each commit: whole trials only, none that runs."""
    store = make(tmp_path / "study.db", space)
    before = sqlite3.connect(tmp_path / "study.db").total_changes
    counted = []
    engine = store.study._storage._inner._backend.engine  # type: ignore[attr-defined]
    from sqlalchemy import event

    @event.listens_for(engine, "commit")
    def on_commit(_: object) -> None:
        counted.append(1)

    (asked,) = store.ask(1)
    assert counted == []
    assert open_study(tmp_path).trials == []
    plan = space.resolve(space.sampled_config(asked.indices))
    metrics = {"accuracy": 0.5, "total_flops": 1.0}
    record = Record(
        widths=plan.to_dict(), source=Source.TRAINED, trained_in=0, scaled_metrics=metrics
    )
    writes: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def on_statement(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("INSERT"):
            writes.append(f"{len(counted)}")

    store.tell(asked, record, [0.5, 1.0])
    assert len(writes) >= 4  # the trial, its values, its parameters, its record
    assert len(set(writes)) == 1  # all before one commit
    assert before == 0
    (trial,) = open_study(tmp_path).trials
    assert trial.state == TrialState.COMPLETE


def test_failures_are_kept_with_their_kind(space: ChannelMultiplierSpace, tmp_path: Path) -> None:
    store = make(tmp_path / "study.db", space)
    kinds = [FailureKind.DIVERGED, FailureKind.RUNNER]
    for width, kind in enumerate(kinds, start=1):
        widths = {"seq_blocks_2": width, "seq_blocks_5": 8}
        failure = Failure(kind=kind, message="because")
        store.tell(
            store.ask(1)[0], Record(widths=widths, failure=failure, trained_in=width - 1), None
        )
    again = make(tmp_path / "study.db", space)
    assert [t.record.failure.kind for t in again.trials if t.record.failure] == kinds
    assert [t.state for t in again.study.trials] == [TrialState.FAIL] * 2
    # A network whose training diverged is known; one whose runner failed may be tried again.
    assert [trial.number for trial in again.known.values()] == [0]
    (diverged,) = again.known.values()
    twin = diverged.record.looked_up()
    assert twin.failure is not None
    assert twin.failure.message == "because, as in trial 0"
    assert again.front == []


def test_a_sampler_that_continues_knows_the_earlier_trials(
    space: ChannelMultiplierSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make(tmp_path / "study.db", space), 12)
    seen: list[int] = []

    class Spy(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> Any:
            seen.append(len(study.get_trials(states=(TrialState.COMPLETE,))))
            return super().infer_relative_search_space(study, trial)

    monkeypatch.setattr("labkit.study.proposals.make_sampler", lambda *_: Spy())
    make(tmp_path / "study.db", space).ask(1)
    assert seen == [12]


def test_what_labkit_did_not_write_is_refused(
    space: ChannelMultiplierSpace, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with pytest.raises(LabkitError, match="holds no study.db"):
        open_study(tmp_path)
    study = optuna.create_study(study_name="s", storage=url, directions=["maximize", "minimize"])
    study.add_trial(optuna.trial.create_trial(values=[0.5, 1.0]))
    with pytest.raises(LabkitError, match="the study 's' is not one of labkit's"):
        make(tmp_path / "study.db", space)
    del study
    optuna.delete_study(study_name="s", storage=url)
    store = make(tmp_path / "study.db", space)
    store.study.add_trial(optuna.trial.create_trial(values=[0.5, 1.0]))
    with pytest.raises(LabkitError, match="trial 0 has no record that labkit wrote"):
        read_trials(store.study)


def test_a_study_whose_maker_was_killed_before_it_said_what_it_is_goes_on(
    space: ChannelMultiplierSpace, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=url, directions=["maximize", "minimize"])
    run(make(tmp_path / "study.db", space), 2)
    assert len(make(tmp_path / "study.db", space).trials) == 2


def test_a_store_takes_in_what_another_one_added(
    space: ChannelMultiplierSpace, tmp_path: Path
) -> None:
    one, other = (make(tmp_path / "study.db", space) for _ in range(2))
    run(one, 5)
    one.add_replicate(one.front[0].number, 0, {"accuracy": 0.5})
    other.refresh()
    assert other.trials == one.trials
    assert other.front == one.front
    assert other.added_replicates == one.added_replicates
    asked = [store.ask(1)[0].indices for store in (one, other) for _ in range(4)]
    assert asked[:4] != asked[4:]
    run(other, 3)
    assert [trial.number for trial in read_trials(one.study)] == list(range(8))
    known = {trial.record.plan: trial.number for trial in reversed(other.trials)}
    assert all(trial.record.trained_in == known[trial.record.plan] for trial in other.trials)


def test_brute_force_over_too_many_networks_is_refused_before_it_begins(tmp_path: Path) -> None:
    table = {"default": {"config": {"channel_multiplier": [x / 16 for x in range(1, 300)]}}}
    space = ChannelMultiplierSpace(get_model("jsc-three-linear-layers"), {"by": "name"}, table)
    assert space.n_configurations > 20_000
    with pytest.raises(LabkitError, match="too many to enumerate"):
        make(None, space, sampler="bruteforce")


numbers = st.floats(allow_nan=False, allow_infinity=False)
metrics = st.dictionaries(st.text(), numbers, max_size=3)


@settings(max_examples=60)
@given(
    st.builds(
        Record,
        pass_config=st.fixed_dictionaries({"by": st.just("name")}),
        widths=st.dictionaries(st.text(), st.integers(1, 2**20), max_size=3),
        source=st.sampled_from([None, *Source]),
        trained_in=st.none() | st.integers(0, 10**6),
        software_metrics=metrics,
        hardware_metrics=metrics,
        scaled_metrics=metrics,
        history=st.lists(metrics, max_size=2),
        replicates=st.lists(metrics, max_size=2),
        failure=st.none() | st.builds(Failure),
    )
)
def test_a_record_is_written_and_read_as_it_is(record: Record) -> None:
    written = record.model_dump(mode="json", exclude_defaults=True)
    assert Record.model_validate(written) == record


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tpe", optuna.samplers.TPESampler),
        ("gp", optuna.samplers.GPSampler),
        ("nsgaii", optuna.samplers.NSGAIISampler),
        ("nsgaiii", optuna.samplers.NSGAIIISampler),
        ("qmc", optuna.samplers.QMCSampler),
        ("random", optuna.samplers.RandomSampler),
        ("bruteforce", optuna.samplers.RandomSampler),
    ],
)
def test_a_sampler_is_the_one_that_is_named_and_follows_its_seed(name: str, kind: type) -> None:
    def proposals(seed: int) -> list[int]:
        study = optuna.create_study(sampler=make_sampler(name, seed))
        space = {"a": optuna.distributions.IntDistribution(0, 10**9)}
        asked = [study.ask(space) for _ in range(4)]
        for trial in asked:
            study.tell(trial, 0.0)
        return [trial.params["a"] for trial in asked]

    assert type(make_sampler(name, 0)) is kind
    assert proposals(3) == proposals(3) != proposals(4)


def test_tpe_spreads_what_runs_at_once() -> None:
    """As Optuna's own option does; and QMC is scrambled, so that its first point is not 0."""
    sampler: Any = make_sampler("tpe", 0)
    assert sampler._constant_liar
    scrambled: Any = make_sampler("qmc", 0)
    assert scrambled._scramble


@pytest.mark.parametrize(("seed", "second"), [(5, 8), (2**32 - 1, 2)])
def test_a_sampler_that_continues_is_seeded_anew(
    space: ChannelMultiplierSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    seed: int, second: int,
) -> None:  # fmt: skip
    seeds: list[int] = []

    def spy(name: str, seed: int) -> Any:
        seeds.append(seed)
        return optuna.samplers.RandomSampler(seed=seed)

    monkeypatch.setattr("labkit.study.proposals.make_sampler", spy)
    run(make(tmp_path / "study.db", space, seed=seed), 3)
    continued = make(tmp_path / "study.db", space, seed=seed)
    assert seeds[0] == seed
    assert seeds[-1] == second
    assert len(continued.trials) == 3


def test_a_file_holds_one_study(space: ChannelMultiplierSpace, tmp_path: Path) -> None:
    make(tmp_path / "study.db", space)
    with pytest.raises(LabkitError, match=r"project: .* holds the search 's', not 't'"):
        make(tmp_path / "study.db", space, name="t")
    url = f"sqlite:///{tmp_path}/study.db"  # a storage of one's own may hold several
    make(url, space, name="t")
    make(url, space, name="t")
    with pytest.raises(LabkitError, match=r"expected one study in .*study.db', got 2"):
        open_study(tmp_path)
    assert make(url, space, name="t").study.metric_names == ["accuracy", "total_flops"]


def test_the_front_and_the_sampler_learn_of_trained_networks(
    space: ChannelMultiplierSpace,
) -> None:
    store = make(None, space)
    assert store.is_on_front([0.0, 1e9])
    widths = {"seq_blocks_2": 8, "seq_blocks_5": 8}
    metrics = {"accuracy": 0.5, "total_flops": 9.0}
    record = Record(
        widths=widths, source=Source.TRAINED, trained_in=0, scaled_metrics=metrics,
        replicates=[metrics],
    )  # fmt: skip
    first = store.tell(store.ask(1)[0], record, [0.5, 9.0])
    store.tell(store.ask(1)[0], record.looked_up(), [0.5, 9.0])
    failure = Failure(kind=FailureKind.DIVERGED, message="why")
    store.tell(store.ask(1)[0], Record(widths={"seq_blocks_2": 4}, failure=failure), None)
    assert store.front == [first]
    assert store.known[record.plan] is first
    assert len(store.known) == 2
    assert not store.is_on_front([0.5, 9.5])
    assert store.is_on_front([0.5, 8.5])
    inner = store._proposals._study.get_trials()
    assert [trial.values for trial in inner] == [[0.5, 9.0], [0.5, 9.0], None]
    assert [trial.state for trial in inner] == 2 * [TrialState.COMPLETE] + [TrialState.FAIL]
    assert [trial.number for trial in store.trials] == [0, 1, 2]


def test_replicates_are_paired_by_seed(space: ChannelMultiplierSpace, tmp_path: Path) -> None:
    store = make(tmp_path / "study.db", space)
    run(store, 1)
    of_0, of_1, of_3 = ({"accuracy": value} for value in (0.5, 0.25, 0.75))
    assert store.missing_replicates(0, 3) == [0, 1, 2]
    store.add_replicate(0, 0, of_0)
    store.add_replicate(0, 3, of_3)  # by a faster worker: kept, but tests pair what is there
    for one in (store, make(tmp_path / "study.db", space)):
        assert one.missing_replicates(0, 5) == [1, 2, 4]
        assert one.added_replicates == {0: [of_0, None, None, of_3]}
        assert Results.from_study(one.study).replicates(0) == [of_0]
    store.add_replicate(0, 1, of_1)
    assert Results.from_study(store.study).replicates(0) == [of_0, of_1]
    assert store.missing_replicates(0, 4) == [2]


def test_what_is_looked_up_says_where_it_comes_from() -> None:
    record = Record(
        pass_config={"by": "type"}, widths={"a": 4}, source=Source.TRAINED, trained_in=3,
        software_metrics={"accuracy": 0.5, "loss": 1}, hardware_metrics={"loss": 2},
        history=[{"loss": 1}], replicates=[{"loss": 1}],
    )  # fmt: skip
    twin = record.looked_up()
    assert twin == record.model_copy(update={"source": Source.LOOKED_UP, "history": []})
    assert record.metrics == {"accuracy": 0.5, "loss": 2}
    for error, said in ((LabkitError("so"), "so"), (KeyError("k"), "KeyError: 'k'")):
        assert Failure.of(FailureKind.RUNNER, error).message == said
