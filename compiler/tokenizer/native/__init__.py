"""Hold the sources in C around a language model: tokenizer, chats, the choice of tokens."""
