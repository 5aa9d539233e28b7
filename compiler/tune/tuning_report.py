"""The report of a tuning run: one HTML file that needs nothing else."""

import io
from pathlib import Path
from typing import Any

from edgec.compiler.errors import OutputError
from edgec.compiler.tune.report_data import TuneReport
from edgec.targets.target import Target

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Tuning of {{ model }} for {{ target.name }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; color: #222 }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
th:nth-child(-n+2), td:nth-child(-n+2), td.text, th.text { text-align: left }
code { font-size: 11px; word-break: break-all }
.bad { color: #a00 }
svg { max-width: 100%; height: auto }
</style>
<h1>{{ model }} for {{ target.name }}</h1>
<p>{{ "%.3f"|format(report.before * 1e3) }} ms by the default decisions,
<b>{{ "%.3f"|format(report.after * 1e3) }} ms</b> tuned:
{{ "%.2f"|format(report.before / report.after) }} times as fast.
{{ report.trials }} trials in {{ "%.0f"|format(report.seconds) }} s on {{ machine }},
{{ threads }} thread{{ "s" if threads > 1 }}; ended because {{ report.reason }}.
{% if emulated %}<b>Measured in an emulator: these times say little about the real board.</b>
{% endif %}{% if report.noisy %}<b>The machine was noisy while the results were compared.</b>
{% endif %}</p>
{{ plot }}
<h2>Kernels</h2>
<table>
<tr><th>task<th>operators<th>calls<th>before µs<th>after µs<th>gain<th>GFLOP/s before<th>after
<th>of peak<th>trials<th class="text">decision</tr>
{% for r in report.tasks %}
<tr><td>{{ r.task.number }}<td>{{ r.task.label }}<td>{{ r.task.steps|length }}
<td>{{ "%.1f"|format(r.before * 1e6) }}<td>{{ "%.1f"|format(r.after * 1e6) }}
<td>{{ "%.2f"|format(r.before / r.after) }}
<td>{{ "%.0f"|format(r.gflops(r.before)) }}<td>{{ "%.0f"|format(r.gflops(r.after)) }}
<td>{{ "%.0f"|format(100 * r.gflops(r.after) / (target.peak_gflops * threads)) }} %
<td>{{ r.trials }}<td class="text"><code>{{ r.decision }}</code>
{% if r.rejected %}<br><span class="bad">rejected: {{ r.rejected }}</span>{% endif %}</tr>
{% endfor %}
</table>
<p>Speed counts the arithmetic of the operators as they are defined; a fast algorithm may exceed
the peak. Times of a kernel are those of one call inside the model.</p>
</html>
"""


def write_tuning_report(
    path: Path,
    report: TuneReport,
    model: str,
    target: Target,
    machine: str,
    threads: int,
    *,
    emulated: bool,
) -> None:
    """Write the report.

    Raises:
        OutputError: it cannot be written.
    """
    import jinja2
    import markupsafe

    environment = jinja2.Environment(autoescape=True)
    page = environment.from_string(_PAGE).render(
        model=model,
        target=target,
        report=report,
        machine=machine,
        threads=threads,
        emulated=emulated,
        plot=markupsafe.Markup(_plot(report)),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def _plot(report: TuneReport) -> str:
    """Return time of the model against trials, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes: Any = figure.subplots()
    trials = [point[1] for point in report.history]
    times = [point[2] * 1e3 for point in report.history]
    axes.step(trials, times, where="post")
    axes.set_xlabel("trials")
    axes.set_ylabel("model [ms], kernels by their best so far")
    axes.grid(alpha=0.3)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return svg[svg.index("<svg") :]
