"""Distillation: what it repairs, what it leaves alone, and that it can be taken up again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.digits_model import DigitsModel, digits_model

from edgec.compiler.compress.compression_recipe import CompressionRecipe, load_compression
from edgec.compiler.compress.compressor import CompressedModel, compress_model
from edgec.compiler.compress.options import CompressOptions
from edgec.compiler.compress.steps.distill import Distill, _cross_entropy, _divergence
from edgec.compiler.compress.steps.sparse import Sparse
from edgec.compiler.compress.training import Schedule, rate_at
from edgec.compiler.errors import BadInputError, RecipeError, UsageError
from edgec.compiler.ir.anchors import find_operators
from edgec.compiler.ir.graph import Graph
from edgec.compiler.support.progress import Progress, Silent


@pytest.fixture(scope="module")
def model(digits: Path) -> DigitsModel:
    return digits_model(digits)


def distilled(
    model: DigitsModel,
    settings: Distill,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> CompressedModel:
    """The digits model, pruned to a half and trained."""
    recipe = CompressionRecipe(name="test", step=(Sparse(ratio=0.6, scope="model"), settings))
    options = CompressOptions(recipe=recipe, checkpoint=checkpoint)
    return compress_model(model.module, options, model.context(progress=progress))


def weights_of(model: DigitsModel, result: CompressedModel) -> list[np.ndarray]:
    graph = Graph(result.module, model.imported.value_names)
    return [o.weight.array for o in find_operators(graph) if o.weight is not None]


def test_pruned_weights_learn_to_answer_alike(model: DigitsModel) -> None:
    result = distilled(model, Distill(rate=5e-3, epochs=30, noise=0.05))
    pruned, trained = result.steps
    assert pruned.accuracy is not None
    assert trained.accuracy is not None
    assert trained.accuracy.sqnr_db > pruned.accuracy.sqnr_db + 6
    assert trained.accuracy.score >= max(0.97, pruned.accuracy.score)
    # What was zero still is, what was not still is not.
    assert trained.costs.nonzeros == pruned.costs.nonzeros


class Killed(Silent):
    """Stops a training after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @contextmanager
    def parts(self, title: str, total: int | None) -> Iterator[Callable[[], None]]:
        def advance() -> None:
            self.steps -= title == "distill"
            if self.steps == 0:
                raise KeyboardInterrupt

        yield advance


def test_a_killed_run_gives_the_same_bits(model: DigitsModel, tmp_path: Path) -> None:
    settings = Distill(epochs=2, noise=0.1, shift=1, mix=True, features=0.1)
    whole = weights_of(model, distilled(model, settings))
    file = tmp_path / "run" / "state.npz"
    with pytest.raises(KeyboardInterrupt):
        distilled(model, settings, file, Killed(8))
    resumed = weights_of(model, distilled(model, settings, file))
    assert all(map(np.array_equal, whole, resumed))
    # Another seed is the control.
    other = weights_of(model, distilled(model, settings.model_copy(update={"seed": 1})))
    assert not any(map(np.array_equal, whole, other))
    with pytest.raises(BadInputError, match="of another run"):
        distilled(model, settings.model_copy(update={"rate": 1e-3}), file)


def test_what_is_no_checkpoint_is_refused(model: DigitsModel, tmp_path: Path) -> None:
    file = tmp_path / "state.npz"
    file.write_bytes(b"PK nothing")
    with pytest.raises(BadInputError, match="is none of edgec"):
        distilled(model, Distill(epochs=1), file)


def test_labels_are_learnt(model: DigitsModel, tmp_path: Path) -> None:
    """Labels that say the opposite of the teacher are the control."""
    labels = load_digits().target[:300]
    scores = []
    for name, given in (("right", labels), ("wrong", (labels + 1) % 10)):
        np.save(tmp_path / f"{name}.npy", given)
        settings = Distill(
            epochs=10, rate=5e-3, labels=tmp_path / f"{name}.npy", label_weight=20, held_out=0
        )
        scores.append(model.top1(distilled(model, settings).module))
    assert scores[0] > 0.9 > 0.6 > scores[1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros(7, int), r"int64 \[7\] was found, integers \[300\]"), (np.zeros(300), "float64")],
)
def test_labels_that_do_not_fit(
    model: DigitsModel, tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(UsageError, match=message):
        distilled(model, Distill(labels=tmp_path / "labels.npy"))


def test_settings_that_contradict(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[[step]]\nkind = "distill"\nmix = true\nlabels = "y.npy"\n')
    with pytest.raises(RecipeError, match="mixed images have no labels"):
        load_compression(str(file))
    with pytest.raises(UsageError, match="the recipe has 0"):
        CompressOptions(recipe=load_compression("sparse-50"), checkpoint=file)
    with pytest.raises(UsageError, match="add --calibration"):
        CompressOptions(recipe=load_compression("distill")).check_samples(given=False)


def test_derivatives_of_the_losses() -> None:
    random = np.random.default_rng(0)
    actual, expected, move = random.standard_normal((3, 4, 10))
    labels = np.array([1, 5, 0, 9])
    losses: tuple[Callable[[np.ndarray], tuple[float, np.ndarray]], ...] = (
        lambda z: _divergence(z, expected, 3.0),
        lambda z: _cross_entropy(z, labels),
    )
    for loss in losses:
        numeric = (loss(actual + 1e-5 * move)[0] - loss(actual - 1e-5 * move)[0]) / 2e-5
        assert np.sum(loss(actual)[1] * move) == pytest.approx(numeric, rel=1e-4)
    assert _divergence(expected, expected, 3.0)[0] == pytest.approx(0, abs=1e-6)


def test_the_rate_rises_and_falls() -> None:
    schedule = Schedule(epochs=1, rate=0.1, warmup=0.1, patience=1, clip=1)
    rates = [rate_at(step, 100, schedule) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1)
    assert int(np.argmax(rates)) in (9, 10)
    assert rates[-1] < 1e-3
