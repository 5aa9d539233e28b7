"""Read a model of any kind: an ONNX file, a GGUF file, or a folder of Hugging Face's."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from edgec.compiler.errors import LimitError, UsageError
from edgec.compiler.frontend.limits import DEFAULT_LIMITS, Limits, in_mb
from edgec.compiler.frontend.onnx_file import SourceModel, external_files, read_onnx
from edgec.compiler.ir.signature import State
from edgec.compiler.language.decoder_graph import write_decoder
from edgec.compiler.language.exported_decoder import is_exported_decoder, read_exported
from edgec.compiler.language.gguf_file import is_gguf
from edgec.compiler.language.gguf_model import read_gguf_model
from edgec.compiler.language.huggingface import is_folder, read_huggingface
from edgec.compiler.language.language_model import CacheDtype, ModelSource
from edgec.compiler.language.lora import Adapter, merge_adapters
from edgec.compiler.support.files import scratch_folder


def is_language_model(path: Path) -> bool:
    """Return whether a path is a language model in a form of its own."""
    return is_folder(path) or (path.is_file() and is_gguf(path))


def read_model(
    path: Path,
    limits: Limits = DEFAULT_LIMITS,
    context: int | None = None,
    folder: Path | None = None,
    change: Callable[[ModelSource], ModelSource] | None = None,
    cache: CacheDtype = "float32",
    lora: Sequence[Adapter] = (),
    states: Sequence[State] = (),
) -> SourceModel:
    """Read and check a model.

    Args:
        path: an ONNX file, a GGUF file, or a folder with `config.json`.
        limits: the limits of what it may ask for.
        context: tokens that a language model's cache holds; by default those that it was made
            for, at most 4,096. An ONNX file is a language model only with a context.
        folder: where the graph of a language model is kept; by default it is not.
        change: what becomes of a language model in a form of its own before it is a graph.
        cache: dtype of its cache.
        states: caches of an exported decoder by other names than exporters give; they get those.
        lora: adapters that are merged into its weights, before `change`.

    Raises:
        ModelFileError: missing, unreadable, or contradicting itself.
        LimitError: larger than allowed.
        UnsupportedModelError: what is not known of operators, architectures or tensor types.
        UsageError: a context for a model that is none of language.
    """
    if not is_language_model(path):
        if cache != "float32":
            raise UsageError(
                f"--cache {cache} is for GGUF files and Hugging Face folders; {path} is neither"
            )
        if lora:
            raise UsageError(
                f"--lora is for GGUF files and Hugging Face folders; {path} is neither"
            )
        source = read_onnx(path, limits)
        return source if context is None else _with_cache(source, context, states)
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    if size > limits.file_bytes:
        raise LimitError(
            f"language model {path} has {in_mb(size)}; at most {in_mb(limits.file_bytes)} are "
            "allowed (--limit file=SIZE)"
        )
    read = read_gguf_model if path.is_file() else read_huggingface
    model = read(path, context)
    if lora:
        model = merge_adapters(path, model, lora, rounded=change is not None)
    model = model if change is None else change(model)
    with nullcontext(folder) if folder is not None else scratch_folder() as scratch:
        decoder = write_decoder(
            model.decoder,
            model.weights,
            model.language.context,
            scratch,
            name=path.stem,
            cache=cache,
        )
        # As long as the file is kept, nobody needs another copy of its weights.
        kept = folder is not None
        unlimited = replace(limits, file_bytes=1 << 62)
        source = read_onnx(decoder, unlimited, leave_weights=kept)
    return replace(
        source,
        path=path,
        sha256=model.language.digest,
        language=model.language,
        tokenizer=model.tokenizer,
        decoder=decoder if folder is not None else None,
    )


def _with_cache(source: SourceModel, context: int, states: Sequence[State]) -> SourceModel:
    """Return an exported decoder with a cache of so many rows."""
    path, proto = source.path, source.proto
    if not is_exported_decoder(proto):
        raise UsageError(
            "--context is for language models: GGUF files, Hugging Face folders and exported "
            f"decoders with input_ids and a cache; {path} is none"
        )
    tokenizer, language = read_exported(proto, context, path, external_files(path), states)
    return replace(source, sha256=language.digest, language=language, tokenizer=tokenizer)
