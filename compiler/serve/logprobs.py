"""Write how likely tokens were, as OpenAI's interface has it for chats and for plain texts."""

from collections.abc import Callable, Sequence
from typing import Any

from edgec.compiler.generation.reply import Piece, TokenOdds

# JSON has no infinities; this is what OpenAI's servers give for what cannot be.
LEAST = -9999.0

TextOf = Callable[[int], bytes]


def chat_logprobs(pieces: Sequence[Piece], text_of: TextOf) -> dict[str, Any]:
    """Return `choices[].logprobs` of a chat."""

    def entry(odds: TokenOdds) -> dict[str, Any]:
        text = text_of(odds.token)
        return {
            "token": text.decode(errors="replace"),
            "logprob": max(LEAST, odds.logprob),
            "bytes": list(text),
        }

    content = [
        {**entry(piece.odds), "top_logprobs": [entry(odds) for odds in piece.likeliest]}
        for piece in pieces
        if piece.odds is not None
    ]
    return {"content": content, "refusal": None}


def text_logprobs(pieces: Sequence[Piece], text_of: TextOf, begin: int) -> dict[str, Any]:
    """Return `choices[].logprobs` of a plain text.

    Args:
        pieces: of the reply.
        text_of: bytes of a token.
        begin: characters of the reply before these pieces.
    """

    def text(token: int) -> str:
        return text_of(token).decode(errors="replace")

    found = [piece for piece in pieces if piece.odds is not None]
    offsets, at = [], begin
    for piece in found:
        offsets.append(at)
        at += len(piece.text)
    return {
        "tokens": [text(piece.odds.token) for piece in found if piece.odds],
        "token_logprobs": [max(LEAST, piece.odds.logprob) for piece in found if piece.odds],
        "top_logprobs": [
            {text(odds.token): max(LEAST, odds.logprob) for odds in piece.likeliest}
            for piece in found
        ],
        "text_offset": offsets,
    }
