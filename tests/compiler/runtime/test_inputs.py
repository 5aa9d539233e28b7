"""Inputs are checked, and generated in the domain of the model."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from onnx import TensorProto
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.errors import TensorInputError
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.runtime.inputs import DOMAINS, generate_inputs

TABLE = random(5, 3)
BEYOND = "input i holds the index {}; it chooses from 5 rows, so -5 to 4 are expected"
WRONG = (5, -6, 2**31 - 1)


@pytest.fixture(scope="module", params=["int32", "int64"])
def lookup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose only input chooses rows of a table."""
    dtypes = {"i": getattr(TensorProto, request.param.upper())}
    nodes = [node("Gather", ["t", "i"], ["y"])]
    model = make_model(nodes, {"i": [2]}, ["y"], {"t": TABLE}, dtypes=dtypes)
    folder = tmp_path_factory.mktemp("lookup")
    options = CompileOptions(runner=True, name="lookup")
    return compile_model(save(model, folder), "native", options, output=folder / "b.edgec")


def indices(bundle: Bundle, *values: int) -> dict[str, np.ndarray]:
    return {"i": np.array(values, bundle.manifest.inputs[0].dtype)}


@pytest.mark.parametrize("how", ["bundle", "session", "pool"])
def test_an_index_beyond_its_table_is_refused(lookup: Bundle, how: str) -> None:
    """ONNX Runtime refuses it, too; negative ones count from the end."""
    model = {
        "bundle": lambda: lookup,
        "session": lambda: lookup.open(threads=1),
        "pool": lambda: lookup.open(threads=1, sessions=2),
    }[how]()
    for wrong in WRONG:
        with pytest.raises(TensorInputError, match=f"^{BEYOND.format(wrong)}$"):
            model.run(indices(lookup, 0, wrong))
        # A refusal leaves the session as it was.
        result = model.run(indices(lookup, 4, -5))["y"]
        np.testing.assert_array_equal(result, TABLE[[4, 0]])


def test_the_virtual_machine_refuses_it_as_well(tmp_path: Path) -> None:
    nodes = [node("Gather", ["t", "i"], ["rows"]), node("NonZero", ["rows"], ["y"])]
    dtypes = {"i": TensorProto.INT64, "y": TensorProto.INT64}
    model = make_model(nodes, {"i": [2]}, ["y"], {"t": TABLE}, dtypes=dtypes)
    options = CompileOptions(parity=False)
    bundle = compile_model(save(model, tmp_path), "native", options, output=tmp_path / "b.edgec")
    assert bundle.manifest.execution.executor == "machine"
    assert bundle.open().run({"i": np.array([4, -5])})["y"].shape == (2, 6)
    with pytest.raises(TensorInputError, match=BEYOND.format(5)):
        bundle.open().run({"i": np.array([0, 5])})


def test_the_runner_refuses_it_in_one_line(lookup: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "i.npy"
    for values, code in (((4, -5), 0), ((0, 5), 4), ((-6, 0), 4)):
        np.save(file, indices(lookup, *values)["i"])
        command = [str(lookup.path / "run"), "--input", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env={}, check=False)
        wrong = next((v for v in values if not -5 <= v < 5), 0)
        message = f"run: error: {BEYOND.format(wrong)}\n" if code else ""
        assert (done.returncode, done.stderr) == (code, message)


C_PROGRAM = """
#include <stdio.h>
#include "edgec_lookup.h"

int main(void) {
  const edgec_model* model = edgec_model_lookup();
  edgec_session* session = model->open(1);
  static char bytes[16] = {1};
  static float rows[6];
  const void* inputs[] = {bytes};
  void* outputs[] = {rows};
  printf("%lld ", (long long)model->index_bounds[0]);
  printf("%d [%s] ", model->run(session, inputs, outputs), model->error(session));
  bytes[0] = 7;
  printf("%d %d [%s] ", model->run(session, inputs, outputs), EDGEC_BAD_INDEX,
         model->error(session));
  bytes[0] = 4;
  printf("%d [%s]", model->run(session, inputs, outputs), model->error(session));
  model->close(session);
  return 0;
}
"""


def test_a_c_program_is_told(lookup: Bundle, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "main.c").write_text(C_PROGRAM)
    library, program = lookup.path / "model.so", tmp_path / "main"
    source = ["-I", lookup.path / "embed", tmp_path / "main.c", library]
    linked = [f"-Wl,-rpath,{tmp_path}", "-o", program]
    subprocess.run([compiler, *source, *linked], check=True)
    with library.open("rb") as stream:
        (tag,) = ELFFile(stream).get_section_by_name(".dynamic").iter_tags("DT_SONAME")
    shutil.copy(library, tmp_path / tag.soname)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == f"5 0 [] -2 -2 [{BEYOND.format(7)}] 0 []"


@pytest.mark.parametrize("domain", DOMAINS)
def test_generated_floats_fit_half_the_bytes(domain: str) -> None:
    (array,) = generate_inputs([TensorSpec("x", (100,), "float32")], 0, {}, domain).values()
    np.testing.assert_array_equal(array.astype(np.float16).astype(np.float32), array)
    assert (array.min() > 0) == (domain != "any")
