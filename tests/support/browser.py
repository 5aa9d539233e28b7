"""Pages as a browser shows them: Chromium without a screen, asked by a script."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, _NAMES)), None)

# The frame has the width in question, which the window of a browser need not take.
_FRAME = """<!doctype html><body style="margin:0">
<iframe style="border:0;width:{width}px;height:800px" srcdoc="{page}"></iframe>
<pre id="answer"></pre>
<script>
document.querySelector("iframe").onload = event => {{
  const view = event.target.contentWindow, page = view.document;
  let answer;
  try {{ answer = (() => {{ {script} }})(); }}
  catch (error) {{ answer = {{ error: String(error) }}; }}
  document.querySelector("iframe").remove();
  document.getElementById("answer").textContent = "ANSWER" + JSON.stringify(answer) + "END";
}};
</script>"""


def ask(page: str, width: int, script: str, folder: Path) -> Any:
    """Return what a script returns that sees the page as `page`, its window as `view`.

    Args:
        page: the text of an HTML page.
        width: the width of the window [CSS pixels].
        script: the body of a function.
        folder: for files of the browser.
    """
    assert BROWSER is not None
    frame = folder / "frame.html"
    frame.write_text(_FRAME.format(width=width, page=html.escape(page), script=script))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000"]
    command += [frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search("ANSWER(.*)END</pre>", done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    answer = json.loads(html.unescape(found[1]))
    assert "error" not in answer, answer
    return answer
