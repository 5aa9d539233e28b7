"""Write a GGUF file of the shape of TinyLlama, 1.1 billion random weights of 4 bits (Q4_0, 620 MB).

    python tests/benchmarks/synthetic_llama.py llama-1b.gguf
    edgec compile llama-1b.gguf --context 2048 -o llama-1b.edgec
    edgec bench llama-1b.edgec --tokens pp512,tg64

What it says means nothing; how fast it says it does. The shape: Zhang and others, 2024,
arXiv:2401.02385, table 2.
"""

import itertools
import sys
from collections.abc import Iterator

import gguf
import numpy as np

LAYERS, WIDTH, HIDDEN, HEADS, KEY_HEADS, VOCABULARY = 22, 2048, 5632, 32, 4, 32000
KEYS = WIDTH // HEADS * KEY_HEADS
# A scale, and codes of 4 bits, of 32 values.
BLOCK, BLOCK_BYTES = 32, 18


def matrices() -> Iterator[tuple[str, int, int]]:
    """Yield names, outputs and inputs."""
    yield "token_embd.weight", VOCABULARY, WIDTH
    for layer in range(LAYERS):
        for name, outputs, inputs in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", KEYS, WIDTH),
            ("attn_v", KEYS, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", HIDDEN, WIDTH),
            ("ffn_up", HIDDEN, WIDTH),
            ("ffn_down", WIDTH, HIDDEN),
        ):
            yield f"blk.{layer}.{name}.weight", outputs, inputs
    yield "output.weight", VOCABULARY, WIDTH


def blocks(random: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    """Return the bytes of a matrix whose products are of the size of a trained layer's."""
    data = random.integers(0, 256, (outputs, inputs // BLOCK, BLOCK_BYTES), np.uint8)
    # Codes less 8 have a deviation of about 4.6.
    scale = random.uniform(0.8, 1.2, data.shape[:2]) * (inputs**-0.5 / 4.6)
    scale = scale.astype(np.float16)
    data[..., :2] = scale[..., None].view(np.uint8)
    return data.reshape(outputs, -1)


def main() -> None:
    """Write the file."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(sys.argv[1], "llama", use_temp_file=True)
    writer.add_block_count(LAYERS)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters = [chr(0x100 + number) for number in range(64)]
    pair = letters[0] + letters[1]
    words = itertools.chain(letters, [pair], map("".join, itertools.product(letters, repeat=3)))
    writer.add_token_list(list(itertools.islice(words, VOCABULARY)))
    writer.add_token_types([3] * 3 + [1] * (VOCABULARY - 3))
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_eos_token_id(2)
    for name, outputs, inputs in matrices():
        data = blocks(random, outputs, inputs)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    for name in (
        "output_norm",
        *(f"blk.{n}.{p}_norm" for n in range(LAYERS) for p in ("attn", "ffn")),
    ):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
