"""Hold the sources in C around a language model: tokenizer, chats, the choice of tokens."""

from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = (
    "characters.c",
    "encode.c",
    "generator.c",
    "models.c",
    "pretokenize.c",
    "reply.c",
    "sampler.c",
    "speculation.c",
    "stream.c",
    "tokenizer_file.c",
)
HEADERS = ("generation.h", "generator.h", "speculation.h", "tokenizer.h", "unicode_tables.h")
FILES = (*SOURCES, *HEADERS)
