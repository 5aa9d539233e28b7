"""A prompt read in chunks of any size, padded or not, gives what the definition does."""

from pathlib import Path

import numpy as np
from support.language_files import config_of, random_tensors, write_folder
from support.reference_decoder import reference_logits

from edgec.compiler import CompileOptions, compile_model

CHUNK, LENGTH = 16, 60
# Tokens of each chunk, and padding behind them.
READ = {
    "token by token": [(1, 0)] * LENGTH,
    "in chunks": [(CHUNK, 0)] * 3 + [(12, 4)],
    "in parts of chunks": [(7, 9)] * 8 + [(1, 0)] * 4,
    "mixed": [(1, 0), (CHUNK, 0), *[(1, 0)] * 9, (5, 11), (CHUNK, 0), (13, 3)],
}


def test_chunks_give_what_the_definition_gives(tmp_path: Path) -> None:
    """With float weights: activations are not rounded, so nothing but the order of sums differs."""
    config = {**config_of("llama"), "num_attention_heads": 6, "num_hidden_layers": 1}
    tensors = random_tensors(config)
    folder = write_folder(tmp_path / "model", config, tensors)
    options = CompileOptions(context=64, prefill_chunk=CHUNK, verify_chunk=0, parity=False)
    session = compile_model(folder, options=options, output=tmp_path / "m.edgec").open(threads=1)
    ids = np.random.default_rng(5).integers(0, config["vocab_size"], LENGTH).tolist()
    expected = reference_logits(config, tensors, ids)
    for name, chunks in READ.items():
        session.reset()
        place = 0
        for count, padding in chunks:
            tokens = np.array([[*ids[place : place + count], *[0] * padding]])
            given = {"input_ids": tokens, "last": np.array([[count - 1]])}
            logits = session.run(given)["logits"][0, 0]
            place += count
            # Logits are of the order of 5.
            np.testing.assert_allclose(logits, expected[place - 1], atol=1e-4, err_msg=name)
        assert place == LENGTH
