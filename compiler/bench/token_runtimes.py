"""Provide language models in other runtimes, which read and choose tokens as a benchmark asks.

Each is an optional package, imported only when asked for. All read the same codes of the same file
on the same number of threads; llama.cpp and OpenVINO GenAI the GGUF file itself, ONNX Runtime GenAI
the graph that edgec compiles, with an interface of its own (`bench/genai_model.py`).
"""

import importlib
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

from edgec.compiler.bench.genai_model import write_genai_model
from edgec.compiler.errors import ToolchainError
from edgec.compiler.generation.generator import Generator

# Tokens that llama.cpp takes at once, as its own benchmark does.
_LLAMA_BATCH = 2048


@dataclass(frozen=True)
class TokenTest:
    """A token test says what is timed.

    Attributes:
        kind: "pp": a prompt is read; "tg": token after token is computed.
        tokens: how many.
        depth: tokens that the cache holds before.
    """

    kind: str
    tokens: int
    depth: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.tokens}" + (f" at {self.depth}" if self.depth else "")


class TokenRuntime(Protocol):
    """A token runtime is a language model, loaded by a runtime."""

    def seconds(self, test: TokenTest, begin: Callable[[], None] | None = None) -> float:
        """Return how long a test took.

        Args:
            test: what is timed.
            begin: called before it, once the cache is as deep as the test wants.

        Raises:
            ToolchainError: this runtime has no way to be measured so.
        """


class _Stepping:
    """A runtime whose cache can be cut, and that reads tokens when it is told to."""

    def __init__(self, vocabulary: int) -> None:
        random = np.random.default_rng(0)
        self._ids = random.integers(0, vocabulary, 1 << 16).tolist()
        # Prompts of every turn differ: nothing of them is in a cache.
        self._turn = itertools.count()

    def go_to(self, tokens: Sequence[int]) -> None:
        """Have exactly these tokens in the cache, at least one if none are asked for."""
        raise NotImplementedError

    def read(self, tokens: Sequence[int]) -> None:
        """Read a prompt behind what is in the cache."""
        raise NotImplementedError

    def step(self, token: int) -> None:
        """Read a token, or the one that the runtime chose."""
        raise NotImplementedError

    def seconds(self, test: TokenTest, begin: Callable[[], None] | None = None) -> float:
        self.go_to(self._ids[: test.depth])
        start = 1 + (test.depth + next(self._turn) * test.tokens) % (1 << 15)
        tokens = self._ids[start : start + test.tokens]
        if begin is not None:
            begin()
        began = time.perf_counter()
        if test.kind == "pp":
            self.read(tokens)
        else:
            for token in tokens:
                self.step(token)
        return time.perf_counter() - began


class _Edgec(_Stepping):
    def __init__(self, bundle: Path, threads: int, _context: int) -> None:
        # Each token takes a run of its own, as the others' do.
        self._generator = Generator(bundle, threads, speculate="off")
        super().__init__(self._generator.language.vocabulary)

    def go_to(self, tokens: Sequence[int]) -> None:
        # A generator always keeps a token to go on from.
        self._before = list(tokens)
        self._generator.read(self._before or self._ids[-1:])

    def read(self, tokens: Sequence[int]) -> None:
        self._generator.read([*self._before, *tokens])

    def step(self, token: int) -> None:
        self._generator.append(token)


class _LlamaCpp(_Stepping):
    def __init__(self, model: Path, threads: int, context: int) -> None:
        from cyllama.llama import llama_cpp

        llama_cpp.disable_logging()
        loading = llama_cpp.LlamaModelParams()
        loading.n_gpu_layers = 0
        self._model = llama_cpp.LlamaModel(str(model), loading, verbose=False)
        settings = llama_cpp.LlamaContextParams()
        settings.n_ctx = context
        settings.n_batch = _LLAMA_BATCH
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.LlamaContext(self._model, settings, verbose=False)
        self._new_batch = llama_cpp.LlamaBatch
        # Tokens in the cache, and how many of them are those that were gone to.
        self._count = self._kept = 0
        super().__init__(self._model.get_vocab().n_vocab)

    def go_to(self, tokens: Sequence[int]) -> None:
        kept = min(self._kept, len(tokens))
        self._context.memory_seq_rm(0, kept, -1)
        self._count = kept
        self.read(tokens[kept:])
        self._kept = len(tokens)

    def read(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), _LLAMA_BATCH):
            chunk = tokens[start : start + _LLAMA_BATCH]
            batch = self._new_batch(n_tokens=len(chunk), embd=0, n_seq_max=1)
            for number, token in enumerate(chunk, 1):
                batch.add(token, self._count, [0], number == len(chunk))
                self._count += 1
            self._context.decode(batch)
        self._context.synchronize()

    def step(self, token: int) -> None:
        self.read([token])


class _OnnxRuntimeGenAi(_Stepping):
    def __init__(self, model: Path, threads: int, context: int) -> None:
        # Not before edgec's, which keeps it from telling what it runs.
        importlib.import_module("edgec.compiler.support.silent_onnxruntime")
        genai = importlib.import_module("onnxruntime_genai")
        self._folder = TemporaryDirectory(prefix="edgec-")
        vocabulary = write_genai_model(model, context, threads, Path(self._folder.name))
        loaded = genai.Model(self._folder.name)
        settings = genai.GeneratorParams(loaded)
        settings.set_search_options(max_length=context, do_sample=False)
        self._generator = genai.Generator(loaded, settings)
        self._kept = 0
        super().__init__(vocabulary)

    def go_to(self, tokens: Sequence[int]) -> None:
        self._kept = min(self._kept, len(tokens) - 1) if tokens else 0
        self._generator.rewind_to(self._kept)
        self._generator.append_tokens(np.array(tokens[self._kept :] or self._ids[-1:], np.int32))
        self._kept = len(tokens)
        # It has computed what this one is chosen from; the next ones cost what a token costs.
        self._generator.generate_next_token()

    def read(self, tokens: Sequence[int]) -> None:
        self._generator.rewind_to(self._kept)
        self._generator.append_tokens(np.array(tokens, np.int32))

    def step(self, token: int) -> None:
        self._generator.generate_next_token()


class _OpenVinoGenAi:
    """Its pipeline answers prompts: where its cache is cut, and what is read, nobody can say."""

    def __init__(self, model: Path, threads: int, _context: int) -> None:
        from edgec.compiler.support.silent_openvino import openvino

        if model.suffix != ".gguf":
            raise ToolchainError("it is measured on GGUF files alone")
        # Not before edgec's, which keeps OpenVINO from telling that it was imported.
        self._genai = importlib.import_module("openvino_genai")
        self._tensor = openvino.Tensor
        self._pipeline = self._genai.LLMPipeline(
            str(model), "CPU", INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY"
        )
        self._turn = itertools.count()

    def seconds(self, test: TokenTest, begin: Callable[[], None] | None = None) -> float:
        if test.kind == "pp" and test.depth:
            raise ToolchainError("its pipeline does not read a prompt behind a given cache")
        if begin is not None:
            raise ToolchainError("its pipeline always reads a prompt before it goes on")
        count = test.tokens if test.kind == "pp" else max(1, test.depth)
        # Of ids that every vocabulary has; other ones in each turn.
        ids = np.random.default_rng(next(self._turn)).integers(100, 1000, (1, count))
        config = self._genai.GenerationConfig()
        config.max_new_tokens = 1 if test.kind == "pp" else test.tokens + 1
        config.ignore_eos = True
        mask = self._tensor(np.ones((1, count), np.int64))
        prompt = self._genai.TokenizedInputs(self._tensor(ids), mask)
        metrics = self._pipeline.generate(prompt, config).perf_metrics
        if test.kind == "pp":
            return float(metrics.get_ttft().mean) / 1e3
        return float(metrics.get_tpot().mean) / 1e3 * test.tokens


@dataclass(frozen=True)
class TokenRival:
    """A token rival describes a runtime of language models.

    Attributes:
        name: what it is asked for by.
        package: Python package it needs.
        load: model file, threads and context to a loaded model.
    """

    name: str
    package: str
    load: Callable[[Path, int, int], TokenRuntime]

    def version(self) -> str:
        """Return the version of its package.

        Raises:
            ToolchainError: it is not installed.
        """
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError:
            raise ToolchainError(
                f"package {self.package} is not installed; pip install {self.package}"
            ) from None


TOKEN_RIVALS: Mapping[str, TokenRival] = {
    rival.name: rival
    for rival in (
        TokenRival("edgec", "edgec", _Edgec),
        TokenRival("llama.cpp", "cyllama", _LlamaCpp),
        TokenRival("onnxruntime-genai", "onnxruntime-genai", _OnnxRuntimeGenAi),
        TokenRival("openvino-genai", "openvino-genai", _OpenVinoGenAi),
    )
}
