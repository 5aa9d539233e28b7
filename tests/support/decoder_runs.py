"""Decoder graphs in ONNX Runtime, chunk by chunk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgec.compiler.support.silent_onnxruntime import onnxruntime

_DTYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64}


class DecoderRun:
    """A decoder run holds a session of ONNX Runtime and the cache that it has filled."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.state = {
            # One text.
            value.name: np.zeros(
                [n if isinstance(n, int) else 1 for n in value.shape], _DTYPES[value.type]
            )
            for value in self.session.get_inputs()
            if value.name.startswith("past")
        }

    def step(self, tokens: Sequence[int], padding: int = 0) -> np.ndarray:
        """Append tokens, with padding behind them; the logits of the last one, [vocabulary]."""
        ids = np.array([[*tokens, *[0] * padding]])
        last = np.array([[len(tokens) - 1]])
        names = [value.name for value in self.session.get_outputs()]
        outputs = self.session.run(None, {**self.state, "input_ids": ids, "last": last})
        found = dict(zip(names, outputs, strict=True))
        for name in self.state:
            present = name.replace("past_key_values", "present").replace("past_", "present_")
            self.state[name] = found[present]
        return found["logits"][0, 0]

    def all_logits(self, ids: Sequence[int], chunks: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return logits behind each chunk, then token by token.

        Args:
            ids: the tokens.
            chunks: so many tokens at once, with so much padding; what is left is decoded singly.
        """
        rows, place = [], 0
        singles = len(ids) - sum(count for count, _ in chunks)
        for count, padding in [*chunks, *[(1, 0)] * singles]:
            rows.append(self.step(ids[place : place + count], padding))
            place += count
        return np.stack(rows)
