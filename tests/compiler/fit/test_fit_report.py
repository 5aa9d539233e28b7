"""The report of a search: what was chosen, what was tried, and names that are not trusted."""

import json
from pathlib import Path

from edgec.compiler.fit.fit_report import FitReport, fit_page, write_fit_report
from edgec.compiler.fit.limits import Costs, Limits
from edgec.compiler.fit.search import Search, Trial
from edgec.compiler.fit.space import Point, Space
from edgec.compiler.support.html_report import render


def report() -> FitReport:
    search = Search(Space(), Limits(drop=0.01), "latency", 3, 0, True, reason="3 trials")
    plain, small = Costs(9.0, 0.0, 4e6, 1e5, 8.0), Costs(3.0, 0.005, 1e6, 1e5, 3.0)
    far = Costs(2.0, 0.2, 8e5, 1e5, 2.0)
    chosen = Trial(Point("int8"), plain, small, measured=True)
    trials = [
        Trial(Point(), plain, plain),
        chosen,
        Trial(Point("int8", (("channels", 70),)), far, far),
        Trial(Point("none", (("layers", 10),)), failure="no <residual> block"),
    ]
    search.trials = {trial.point: trial for trial in trials}
    return FitReport(
        model="<b>.onnx",
        target="rpi4",
        search=search,
        work={"evaluated": 2},
        chosen=chosen,
        bundle=None,
        command="edgec compile b.onnx --quantize int8",
    )


def test_page() -> None:
    page = render(fit_page(report()))
    for text in ("int8 channels-70", "edgec compile b.onnx --quantize int8", "measured", "<svg"):
        assert text in page
    assert "&lt;b&gt;.onnx" in page
    assert "<b>.onnx" not in page
    assert "no &lt;residual&gt; block" in page


def test_fields(tmp_path: Path) -> None:
    write_fit_report(tmp_path / "fit.json", report())
    fields = json.loads((tmp_path / "fit.json").read_text())
    kept = {trial["version"]: trial["keeps_limits"] for trial in fields["trials"]}
    assert kept == {"as it is": True, "int8": True, "int8 channels-70": False, "layers-10": False}
    assert all(trial["on_front"] for trial in fields["trials"][:3])
    assert fields["limits"] == {"drop": 0.01}
