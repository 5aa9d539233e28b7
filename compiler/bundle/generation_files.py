"""Provide what a bundle of a language model has besides: a tokenizer, and C that generates text.

```text
model.edgec/
├── generation.so        tokenizer, chats, choice of tokens, prompt cache; `run` has the same inside
├── tokenizer.bin        the tokenizer and the words of chats, read in place
└── language_model.json  special tokens and the chat template, for Python
```
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from edgec.compiler.codegen.executor import FOLDER as EXECUTOR
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.language.language_model import LanguageModel
from edgec.compiler.support.progress import Progress
from edgec.compiler.tokenizer.chat_pieces import NO_CHAT, ChatPieces, ChatTemplate, chat_pieces
from edgec.compiler.tokenizer.native import FOLDER, SOURCES
from edgec.compiler.tokenizer.tokenizer_file import tokenizer_file
from edgec.targets.target import Target

GENERATION, TOKENIZER, LANGUAGE = "generation.so", "tokenizer.bin", "language_model.json"


def generation_files(
    language: LanguageModel,
    tokenizer: str,
    digest: bytes,
    target: Target,
    scratch: Path,
    progress: Progress,
) -> dict[str, bytes | Path]:
    """Return the files by path in the bundle.

    Args:
        language: what is known of the model.
        tokenizer: content of its tokenizer.json.
        digest: 32 bytes that tell the model from others.
        target: what to build for.
        scratch: folder that the library is written to.
        progress: hears why there are no chats on a board.

    Raises:
        UnsupportedModelError: a part of the tokenizer is not known, by its name.
        ToolchainError: the compiler is missing or fails.
    """
    chat = NO_CHAT
    if language.chat_template:
        try:
            chat = _chat(language, tokenizer)
        except UnsupportedModelError as reason:
            progress.warn(str(reason))
    content = tokenizer_file(tokenizer, stop_tokens=language.end_tokens, chat=chat, digest=digest)
    library = scratch / GENERATION
    build_generation(library, target)
    return {
        GENERATION: library,
        TOKENIZER: content,
        LANGUAGE: language.model_dump_json(indent=1).encode(),
    }


def build_generation(library: Path, target: Target) -> None:
    """Compile generation.so.

    Raises:
        ToolchainError: the compiler is missing or fails.
    """
    sources = [FOLDER / name for name in SOURCES]
    link_shared(sources, library, target, exports=["edgec_*"], includes=[EXECUTOR])


def special_tokens(language: LanguageModel, text_of: Callable[[int], str]) -> Mapping[str, str]:
    """Return the texts of special tokens by the names that chat templates know them by."""
    tokens = {
        "bos_token": language.begin_token,
        "eos_token": language.end_tokens[0] if language.end_tokens else None,
        "unk_token": language.unknown_token,
        "pad_token": language.padding_token,
    }
    return {name: "" if token is None else text_of(token) for name, token in tokens.items()}


def _chat(language: LanguageModel, tokenizer: str) -> ChatPieces:
    described = json.loads(tokenizer)
    texts = {token["id"]: token["content"] for token in described.get("added_tokens") or []}
    special = special_tokens(language, lambda token: texts.get(token, ""))
    return chat_pieces(ChatTemplate(language.chat_template, special))
