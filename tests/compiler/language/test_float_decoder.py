"""Decoders in NumPy, layer by layer, compute what is published."""

from pathlib import Path

import numpy as np
import pytest
from support.language_files import CONFIGS, config_of, random_tensors, write_folder
from support.reference_decoder import reference_logits

from edgec.compiler.language.float_decoder import FloatDecoder, float_matrix, float_products
from edgec.compiler.language.huggingface import read_huggingface

IDS = np.random.default_rng(1).integers(0, 61, (2, 24))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_the_definition(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    tensors = random_tensors(config)
    model = read_huggingface(write_folder(tmp_path, config, tensors), context=32)
    weights = model.weights
    decoder = FloatDecoder(model.decoder, weights, float_products(weights))
    table = float_matrix(weights, "token_embd.weight")
    hidden = decoder.embed(table, IDS)
    for layer in range(model.decoder.layers):
        hidden = decoder.layer(hidden, layer)
    own = "output.weight" in weights.names
    head = float_matrix(weights, "output.weight") if own else table
    for sequence, ids in enumerate(IDS):
        expected = reference_logits(config, tensors, ids.tolist())
        logits = decoder.logits(hidden[sequence], head)
        # Float32 against float64; logits are of the order of 5.
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
