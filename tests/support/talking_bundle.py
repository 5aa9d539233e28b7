"""A small random decoder with a chat template, compiled for this machine with its program."""

import functools
import shutil
import tempfile
from pathlib import Path

from support.gguf_files import write_gguf
from support.language_files import config_of, random_tensors

from edgec.compiler import CompileOptions, compile_model

CONTEXT = 40
# Characters of the vocabulary: bytes 0 to 32.
PROMPT = "\x10\x11\x12\x0b\x05\x14\x10\x11\x12\x0b\x05\x14\x07"
TEMPLATE = (
    "{% for m in messages %}{{ '\x0e' if m['role'] == 'user' else '\x0f' }}{{ m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\x0f' }}{% endif %}"
)


def talking_bundle(folder: Path, *, runner: bool = False) -> Path:
    """Return the path of the bundle, a copy of one that is compiled once."""
    shutil.copytree(Path(_compiled(runner).name) / "tiny.edgec", folder / "tiny.edgec")
    return folder / "tiny.edgec"


@functools.cache
def _compiled(runner: bool) -> tempfile.TemporaryDirectory[str]:
    scratch = tempfile.TemporaryDirectory(prefix="edgec-test-")
    folder = Path(scratch.name)
    config = config_of("llama")
    write_gguf(folder / "tiny.gguf", config, random_tensors(config), chat_template=TEMPLATE)
    options = CompileOptions(context=CONTEXT, prefill_chunk=8, streams=2, runner=runner)
    compile_model(folder / "tiny.gguf", "native", options, output=folder / "tiny.edgec")
    return scratch
