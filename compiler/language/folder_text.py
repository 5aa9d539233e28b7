"""Provide the tokenizer, special tokens and chat template of a folder of Hugging Face's.

`tokenizer.json` is needed; `tokenizer_config.json`, `generation_config.json` and
`chat_template.jinja` say more.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgec.compiler.errors import ModelFileError
from edgec.compiler.language.language_model import LanguageModel
from edgec.compiler.language.settings import Settings

TOKENIZER = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"
_MAX_JSON = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a file.

    Raises:
        ModelFileError: it is missing, unreadable, too large, or holds something else.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelFileError(f"{path} has {path.stat().st_size} bytes, too many for settings")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ModelFileError(f"{path} is no JSON") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds no object")
    return content


def describe_text(
    folder: Path,
    config: Settings,
    files: Sequence[Path],
    *,
    architecture: str,
    context: int,
    trained_context: int,
    vocabulary: int,
) -> tuple[str, LanguageModel]:
    """Return the content of `tokenizer.json`, and what is to be known of the model beside it.

    Args:
        folder: with `tokenizer.json`, and perhaps the other files.
        config: settings with numbers of special tokens.
        files: what the digest is of, with the tokenizer.
        architecture: the family.
        context: rows of the cache.
        trained_context: tokens that the model was made for.
        vocabulary: logits.

    Raises:
        ModelFileError: the tokenizer is missing, or a file is not what its name says.
    """
    content = read_json(folder / TOKENIZER)
    tokens = _token_numbers(content, folder / TOKENIZER)
    described: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            described[name] = read_json(folder / name)
    about = described.get("tokenizer_config.json", {})
    generation = described.get("generation_config.json", {})

    def special(name: str) -> int | None:
        text = about.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str) and text in tokens:
            return tokens[text]
        number = config.get(f"{name}_token_id")
        return number if type(number) is int and 0 <= number < vocabulary else None

    ends: dict[int, None] = {}
    for given in (special("eos"), config.get("eos_token_id"), generation.get("eos_token_id")):
        for token in given if isinstance(given, list) else [given]:
            if type(token) is int and 0 <= token < vocabulary:
                ends[token] = None
    begin = special("bos")
    language = LanguageModel(
        name=str(config.get("_name_or_path") or folder.resolve().name),
        architecture=architecture,
        context=context,
        trained_context=trained_context,
        vocabulary=vocabulary,
        digest=digest_of([folder / TOKENIZER, *files]),
        begin_token=begin,
        add_begin=begin is not None and _adds(content, about, begin, tokens),
        end_tokens=tuple(ends),
        unknown_token=special("unk"),
        padding_token=special("pad"),
        chat_template=_template(folder, about),
    )
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")), language


def _token_numbers(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Return the numbers of all tokens of a `tokenizer.json`."""
    model, added = content.get("model"), content.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    try:
        if isinstance(vocabulary, dict):
            tokens = {str(text): int(number) for text, number in vocabulary.items()}
        elif isinstance(vocabulary, list):
            tokens = {str(item[0]): number for number, item in enumerate(vocabulary)}
        else:
            raise TypeError
        return tokens | {str(item["content"]): int(item["id"]) for item in added}
    except (TypeError, ValueError, KeyError, IndexError):
        raise ModelFileError(f"{path} has no vocabulary of tokens") from None


def _adds(
    content: Mapping[str, Any], about: Mapping[str, Any], begin: int, tokens: Mapping[str, int]
) -> bool:
    """Return whether the tokenizer puts the first token before a text."""
    processor = json.dumps(content.get("post_processor"), ensure_ascii=False)
    names = [text for text, number in tokens.items() if number == begin]
    written = any(json.dumps(name, ensure_ascii=False) in processor for name in names)
    return written or about.get("add_bos_token") is True


def _template(folder: Path, about: Mapping[str, Any]) -> str:
    if (folder / _TEMPLATE).is_file():
        try:
            return (folder / _TEMPLATE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ModelFileError(f"{folder / _TEMPLATE} is no text") from None
    template = about.get("chat_template")
    if isinstance(template, list):
        named = {
            item.get("name"): item.get("template") for item in template if isinstance(item, dict)
        }
        template = named.get("default")
    return template if isinstance(template, str) else ""


def digest_of(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the digests of files."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
