"""A stage that a server of the Open Inference Protocol computes, with the board half here."""

from pathlib import Path

import numpy as np
import pytest
from support.serving import Serving
from support.split_model import FEATURES

from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.distribute.plan_set import PlanSet
from edgec.compiler.distribute.stage_places import StageOptions
from edgec.compiler.errors import BoardError, UsageError
from edgec.compiler.split.plan import Plan


def test_the_server_half_is_called_over_http_and_done_without(folder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    inputs = {n: random.standard_normal((1, FEATURES)).astype(np.float32) for n in ("x", "y")}
    key = tmp_path / "key"
    key.write_text("a key of some length")
    command = [str(folder / "b.edgec"), "--threads", "1", "--key-file", str(key)]
    options = StageOptions(http_key_file=key)
    with Serving(command, tmp_path / "log") as url:
        session = PlanSession(folder, {"b": url}, options=options)
        assert session.whole is not None
        expected = session.whole.run(inputs)
        for found in [f.result(20) for f in [session.submit(inputs) for _ in range(8)]]:
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array)
        assert session.answers == {"plan": 8}
        # The server gives z and takes hidden and y.
        assert (session.remote_bytes, session.remote_links) == (3 * 4 * FEATURES, 3)
        plans = PlanSet([session])
        np.testing.assert_array_equal(plans.run(inputs)["z"], expected["z"])
        assert plans.chooser.bandwidth < float("inf")
        # So small a model is faster here than any link.
        assert plans.chosen == {"here": 1}
        with (
            _alone(folder, tmp_path / "alone", url) as alone,
            pytest.raises(BoardError, match=r"device b .* answers 401"),
        ):
            alone.run(inputs)
    with session:
        np.testing.assert_array_equal(session.run(inputs)["z"], expected["z"])
        assert session.answers["whole"] == 1
        assert "device b" in session.losses[0]
    with pytest.raises(UsageError, match="use https://"):
        PlanSession(folder, {"b": "http://192.0.2.1:8000"})


def _alone(folder: Path, copy: Path, url: str) -> PlanSession:
    """Return a session without the key and without the whole model."""
    copy.mkdir()
    plan = Plan.load(folder).model_copy(update={"whole": None})
    for name in plan.bundles:
        (copy / name).symlink_to(folder / name)
    plan.write(copy)
    return PlanSession(copy, {"b": url})
