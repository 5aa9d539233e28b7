"""The search for one kernel, and the cost model that leads it."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from edgec.compiler.errors import UsageError
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.tuning_records import Key
from edgec.compiler.tune.cost_model import CostModel, features_of
from edgec.compiler.tune.search import PATIENCE, Strategy, TaskSearch
from edgec.compiler.tune.tasks import Task, select_tasks
from edgec.targets import load_target

TARGET = load_target("x86-64-v3")
WORKLOAD = ConvWorkload(1, 32, 28, 28, 64, 28, 28, (1, 1))


def make_task(number: int = 0, label: str = "conv1") -> Task:
    template = TEMPLATES["edgec.conv"]
    default = to_text(template.default(WORKLOAD, TARGET))
    key = Key("edgec.conv", to_text(WORKLOAD))
    return Task(number, label, key, (0,), default, 1.0, 2 * WORKLOAD.macs, TARGET)


def hidden_time(decision: str) -> float:
    """A machine that differs from the analytic model: it likes two vectors and certain segments."""
    parsed = from_text(TEMPLATES["edgec.conv"].decision, decision)
    if not hasattr(parsed, "tile_w"):
        return 1e-3
    accumulators = parsed.tile_w * parsed.tile_h * parsed.tile_o
    time = 1e-4 * 10 / min(accumulators, 10) * (1 + 0.02 * max(0, accumulators - 12))
    time *= (1 + 0.1 * (parsed.tile_o - 2) ** 2) * (1.0 if parsed.rows_first else 1.06)
    noise = random.Random(decision).gauss(0, 0.03)
    return time * (1 + 0.03 * abs(math.log2((parsed.segment or 400) / 30))) * math.exp(noise)


def searched(strategy: Strategy, trials: int, seed: int = 0) -> TaskSearch:
    model = CostModel(seed) if strategy == "evolutionary" else None
    search = TaskSearch(make_task(), strategy, model, seed)
    search.learn(search.task.default, hidden_time(search.task.default))
    for number in range(trials):
        if model is not None and number % 4 == 0:
            model.fit()
        decision = search.propose()
        if decision is None:
            break
        search.learn(decision, hidden_time(decision))
    return search


def test_evolution_finds_what_chance_does_not() -> None:
    evolved = [searched("evolutionary", 60, seed) for seed in range(3)]
    chance = [searched("random", 60, seed) for seed in range(3)]
    least = min(map(hidden_time, make_task().estimates))
    best = [search.seconds(search.best) / least for search in evolved]
    assert np.median(best) < 1.02
    assert np.median(best) < np.median([s.seconds(s.best) / least for s in chance])


def test_exhaustive_tries_every_decision_once_in_the_order_of_estimates() -> None:
    search = TaskSearch(make_task(), "exhaustive", None, 0)
    proposed = []
    while (decision := search.propose()) is not None:
        proposed.append(decision)
    assert proposed == [d for d in search.task.estimates if d != search.task.default]
    assert search.exhausted


@pytest.mark.parametrize("strategy", ["evolutionary", "random"])
def test_a_seed_repeats_itself(strategy: Strategy) -> None:
    assert searched(strategy, 20, 5).trials == searched(strategy, 20, 5).trials
    assert searched(strategy, 20, 5).trials != searched(strategy, 20, 6).trials


def test_a_search_without_gain_ends() -> None:
    search = TaskSearch(make_task(), "random", None, 0)
    search.learn(search.task.default, 1e-6)
    for _ in range(PATIENCE - 1):
        decision = search.propose()
        assert decision is not None
        search.learn(decision, 1e-3)
    assert not search.exhausted
    decision = search.propose()
    assert decision is not None
    search.fail(decision, "crashed")
    assert search.exhausted
    assert search.gain_expected() == 0
    assert search.best == search.task.default


def test_failed_decisions_are_no_candidates() -> None:
    search = TaskSearch(make_task(), "random", None, 0)
    other = next(d for d in search.task.estimates if d != search.task.default)
    search.learn(search.task.default, 2e-6)
    search.learn(other, 1e-6)
    assert search.best == other
    search.fail(other, "wrong result")
    assert search.best == search.task.default
    assert other not in search.candidates(3)


def test_the_cost_model_ranks_decisions_it_has_not_seen() -> None:
    template = TEMPLATES["edgec.conv"]
    model = CostModel(0)
    known, unknown = [], []
    for number, decision in enumerate(template.space(WORKLOAD, TARGET)):
        (known if number % 3 else unknown).append(to_text(decision))
    task = make_task()
    search = TaskSearch(task, "evolutionary", model, 0)
    before = search.predict(unknown)
    for decision in known:
        search.learn(decision, hidden_time(decision))
    model.fit()
    after = search.predict(unknown)
    truth = [hidden_time(decision) for decision in unknown]
    assert _rank_correlation(after, truth) > 0.9
    assert _rank_correlation(after, truth) > _rank_correlation(before, truth)


def _rank_correlation(one: list[float], other: list[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_features_are_numbers_and_know_kernels_apart() -> None:
    import json

    task = make_task()
    workload, decision = json.loads(task.key.workload), json.loads(task.default)
    features = features_of("edgec.conv", workload, decision)
    assert all(math.isfinite(value) for value in features.values())
    larger = json.loads(to_text(replace(WORKLOAD, out_channels=128)))
    assert features_of("edgec.conv", larger, decision) != features


def test_tasks_are_selected_by_number_range_and_name() -> None:
    tasks = [make_task(i, label) for i, label in enumerate(["conv1", "conv2", "fc", "conv3"])]

    def numbers(text: str) -> list[int]:
        return [task.number for task in select_tasks(tasks, text)]

    assert numbers("") == [0, 1, 2, 3]
    assert numbers("0,2-3") == [0, 2, 3]
    assert numbers("fc") == [2]
    assert numbers("conv") == [0, 1, 3]
    with pytest.raises(UsageError, match="fits none of the 4 tasks; did you mean conv1"):
        numbers("convx1")
    with pytest.raises(UsageError, match="--dry-run"):
        numbers("7")
