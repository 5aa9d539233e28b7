"""Make a model write what a JSON schema or a grammar allows, by the package llguidance.

Before each token, llguidance says which ones may follow; the logits of all others become minus
infinity. What comes out is right whatever the model is, and complete unless its tokens run out.
"""

import json
from collections.abc import Mapping
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import UsageError
from edgec.compiler.generation.native import Tokenizer

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_REASON_CHARACTERS = 200


class GuideTokenizer:
    """A guide tokenizer is a model's tokenizer as llguidance knows it, for all guides."""

    def __init__(self, tokenizer: Tokenizer, end_tokens: tuple[int, ...]) -> None:
        """Read the vocabulary.

        Raises:
            UsageError: no token ends a text, so a complete answer could not end.
        """
        if not end_tokens:
            raise UsageError("the model has no token that ends a text, so no form can be kept to")
        self._tokenizer = tokenizer
        self.bos_token_id = None
        self.eos_token_id = end_tokens[0]
        texts = [tokenizer.bytes_of(token) for token in range(tokenizer.size)]
        self.special_token_ids = [token for token, text in enumerate(texts) if text is None]
        self.tokens = [
            f"<{token}>".encode() if text is None else text for token, text in enumerate(texts)
        ]
        wrapped = llguidance.TokenizerWrapper(self)
        self.known = llguidance.LLTokenizer(wrapped, eos_token=list(end_tokens))

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self._tokenizer.encode(text, template_tokens=False)


class TextGuide:
    """A text guide keeps one reply to a form."""

    def __init__(self, tokenizer: GuideTokenizer, grammar: str) -> None:
        """Begin.

        Args:
            tokenizer: of the model.
            grammar: as llguidance writes it: Lark's form, or what `json_grammar` gives.

        Raises:
            UsageError: the grammar is wrong.
        """
        self._matcher = llguidance.LLMatcher(tokenizer.known, grammar, log_level=0)
        self._mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.known.vocab_size)
        self._check()

    def allowed(self) -> NDArray[np.bool_]:
        """Return for each token whether it may be the next."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        return np.unpackbits(self._mask.view(np.uint8), bitorder="little").astype(np.bool_)

    def accept(self, token: int) -> None:
        """Take note of the next token."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:_REASON_CHARACTERS]
            raise UsageError(f"the form of the answer cannot be kept to: {reason}")


def json_grammar(schema: Mapping[str, Any] | str) -> str:
    """Return the grammar of JSON that a schema allows.

    Args:
        schema: or its text.

    Raises:
        UsageError: it is no JSON, or not a schema that llguidance takes.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise UsageError(f"the schema is no JSON: {error}") from None
    if not isinstance(schema, Mapping):
        raise UsageError("the schema is no JSON object")
    grammar: str = llguidance.LLMatcher.grammar_from_json_schema(dict(schema))
    problem = llguidance.LLMatcher.validate_grammar(grammar)
    if problem:
        reason = " ".join(problem.split())[:_REASON_CHARACTERS]
        raise UsageError(f"the schema cannot be kept to: {reason}")
    return grammar
