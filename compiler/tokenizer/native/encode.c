/* A text to tokens: added tokens first, then word by word. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* ---- added tokens ---- */

static span added_text(const edgec_tokenizer* tokenizer, uint32_t row) {
  const added_token* added = &tokenizer->added[row];
  return string_at(tokenizer, added->text, added->size);
}

/* The longest added token of a list that a text has at `at`, or NULL. */
static const added_token* added_at(const sorted_texts* texts, span text, size_t at) {
  const added_token* found = NULL;
  prefix_range range = {0, texts->count, 0};
  for (; at < text.size && range.low < range.high; ++at) {
    size_t row = narrow(texts, &range, text.data[at]);
    if (row != NO_ROW) found = &texts->tokenizer->added[texts->rows[row]];
  }
  return found;
}

static size_t space_before(span text, size_t at, size_t least) {
  while (at > least) {
    size_t from = at - 1, size;
    while (((unsigned char)text.data[from] & 0xC0) == 0x80) --from;
    if (!(character_class(utf8_code(text.data + from, &size)) & SPACE)) break;
    at = from;
  }
  return at < least ? least : at;
}

static size_t space_behind(span text, size_t at) {
  for (size_t size; at < text.size; at += size)
    if (!(character_class(utf8_code(text.data + at, &size)) & SPACE)) break;
  return at;
}

/* ---- all stages ---- */

static void encode_words(encoder* encoder, span text, bool begins) {
  pretokenize(encoder->tokenizer, text, begins, &encoder->words, &encoder->spare_words);
  encoder->ids.failed |= encoder->words.text.failed | encoder->words.ends.failed;
  for (size_t i = 0; !encoder->ids.failed && i < piece_count(&encoder->words); ++i) {
    span word = piece_at(&encoder->words, i);
    /* Places in a word are int32. */
    if (word.size > INT32_MAX / 2)
      encoder->ids.failed = true;
    else if (encoder->tokenizer->settings[MODEL] == BPE)
      encode_bpe(encoder, word);
    else
      encode_unigram(encoder, word);
  }
}

static void encode_between(encoder* encoder, span text, bool begins, bool as_given);

/* Encode a text: added tokens of one kind, and what is between them. Those that are looked for in
 * the text as it is given come first, then those in the normalized text. */
static void encode_added(encoder* encoder, span text, bool begins, bool as_given) {
  const edgec_tokenizer* tokenizer = encoder->tokenizer;
  sorted_texts texts = {tokenizer, tokenizer->added_as_given, tokenizer->as_given_count, added_text};
  if (!as_given) {
    texts.rows = tokenizer->added_normalized;
    texts.count = tokenizer->normalized_count;
  }
  bool first_bytes[256] = {false};
  for (size_t i = 0; i < texts.count; ++i)
    first_bytes[(unsigned char)added_text(tokenizer, texts.rows[i]).data[0]] = true;
  size_t done = 0;
  for (size_t at = 0; at < text.size;) {
    const added_token* added = NULL;
    if (first_bytes[(unsigned char)text.data[at]])
      added = added_at(&texts, text, at);
    if (!added) {
      ++at;
      continue;
    }
    size_t begin = at, end = at += added->size;
    if (added->flags & ADDED_LSTRIP) begin = space_before(text, begin, done);
    if (added->flags & ADDED_RSTRIP) end = at = space_behind(text, end);
    span between = {text.data + done, begin - done};
    encode_between(encoder, between, begins && !done, as_given);
    buffer_append_u32(&encoder->ids, added->id);
    done = end;
  }
  span rest = {text.data + done, text.size - done};
  encode_between(encoder, rest, begins && !done, as_given);
}

static void encode_between(encoder* encoder, span text, bool begins, bool as_given) {
  if (!text.size || encoder->ids.failed) return;
  if (!as_given) {
    encode_words(encoder, text, begins);
    return;
  }
  normalize(encoder->tokenizer, text, &encoder->normalized, &encoder->spare);
  encoder->ids.failed |= encoder->normalized.failed | encoder->spare.failed;
  span normalized = {encoder->normalized.data, encoder->normalized.size};
  if (!encoder->ids.failed) encode_added(encoder, normalized, begins, false);
}

int64_t edgec_encode(const edgec_tokenizer* tokenizer, const char* text, size_t bytes,
                     int template_tokens, int32_t** ids) {
  *ids = NULL;
  if (!utf8_valid(text, bytes)) return EDGEC_TEXT_NOT_UTF8;
  encoder encoder = {.tokenizer = tokenizer};
  buffer_reserve(&encoder.ids, 1);
  if (template_tokens)
    buffer_append(&encoder.ids, tokenizer->prefix, tokenizer->prefix_count * sizeof(uint32_t));
  encode_added(&encoder, (span){text, bytes}, true, true);
  if (template_tokens)
    buffer_append(&encoder.ids, tokenizer->suffix, tokenizer->suffix_count * sizeof(uint32_t));
  buffer* owned[] = {&encoder.symbols,    &encoder.heap,  &encoder.path,
                     &encoder.normalized, &encoder.spare, NULL};
  for (buffer** each = owned; *each; ++each) buffer_free(*each);
  pieces_free(&encoder.words);
  pieces_free(&encoder.spare_words);
  if (encoder.ids.failed) {
    buffer_free(&encoder.ids);
    return EDGEC_TEXT_NO_MEMORY;
  }
  *ids = (int32_t*)(void*)encoder.ids.data;
  return (int64_t)(encoder.ids.size / sizeof(uint32_t));
}

void edgec_free(void* memory) { free(memory); }
