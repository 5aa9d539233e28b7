/* Open tokenizer.bin: every number in it is checked here, once, so that what reads it later need
 * not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

typedef struct {
  const char* data;
  size_t bytes;
  uint32_t sections[SECTION_COUNT][2];
  char* message;
  size_t room;
} reader;

static bool refuse(reader* reader, const char* problem) {
  snprintf(reader->message, reader->room, "tokenizer.bin is damaged: %s", problem);
  return false;
}

/* The rows of a section, of `size` bytes each. */
static const void* rows(const reader* reader, enum section section, size_t size, size_t* count) {
  *count = reader->sections[section][1] / size;
  return reader->data + reader->sections[section][0];
}

static bool read_sections(reader* reader) {
  size_t head = strlen(TOKENIZER_MAGIC) + sizeof reader->sections;
  if (reader->bytes < head) return refuse(reader, "it is too short");
  if (memcmp(reader->data, TOKENIZER_MAGIC, strlen(TOKENIZER_MAGIC)))
    return refuse(reader, "it does not begin with " TOKENIZER_MAGIC);
  memcpy(reader->sections, reader->data + strlen(TOKENIZER_MAGIC), sizeof reader->sections);
  static const size_t row_bytes[SECTION_COUNT] = {
      4, sizeof(step), sizeof(step), 1, 4, 1, 1, 4, sizeof(merge), 8, 4, sizeof(added_token), 4, 4,
      4, 1, 8};
  for (int i = 0; i < SECTION_COUNT; ++i) {
    uint32_t offset = reader->sections[i][0], size = reader->sections[i][1];
    if (offset % 8 || offset < head || offset > reader->bytes || size > reader->bytes - offset)
      return refuse(reader, "a section lies outside of it");
    if (size % row_bytes[i]) return refuse(reader, "a section ends within a row");
  }
  return true;
}

static bool ids_fit(const edgec_tokenizer* tokenizer, const uint32_t* ids, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (ids[i] >= tokenizer->tokens) return false;
  return true;
}

static bool string_fits(const edgec_tokenizer* tokenizer, uint32_t offset, uint32_t size) {
  return offset <= tokenizer->string_bytes && size <= tokenizer->string_bytes - offset &&
         utf8_valid(tokenizer->strings + offset, size);
}

static bool steps_fit(const edgec_tokenizer* tokenizer, const step* steps, size_t count,
                      uint32_t kinds) {
  for (size_t i = 0; i < count; ++i)
    if (steps[i].kind >= kinds || !string_fits(tokenizer, steps[i].first, steps[i].first_size) ||
        !string_fits(tokenizer, steps[i].second, steps[i].second_size))
      return false;
  return true;
}

/* Steps that look for a text, which must not be empty; and their behaviors. */
static bool searches_fit(const edgec_tokenizer* tokenizer) {
  for (size_t i = 0; i < tokenizer->normalizer_steps; ++i)
    if (tokenizer->normalizer[i].kind == NORMALIZE_REPLACE && !tokenizer->normalizer[i].first_size)
      return false;
  for (size_t i = 0; i < tokenizer->pretokenizer_steps; ++i) {
    const step* step = &tokenizer->pretokenizer[i];
    bool text = step->kind == SPLIT_TEXT, meta = step->kind == SPLIT_METASPACE;
    if ((text || meta) && !step->first_size) return false;
    if ((text && step->behavior >= BEHAVIORS) || (meta && step->behavior >= PREPEND_SCHEMES))
      return false;
    if (step->kind == SPLIT_LLAMA3 && !step->number) return false;
  }
  return true;
}

static bool read_tokens(reader* reader, edgec_tokenizer* tokenizer) {
  size_t text_bytes, flags, scores;
  tokenizer->token_ends = rows(reader, TOKEN_ENDS, 4, &tokenizer->tokens);
  tokenizer->token_text = rows(reader, TOKEN_TEXT, 1, &text_bytes);
  tokenizer->token_flags = rows(reader, TOKEN_FLAGS, 1, &flags);
  tokenizer->scores = rows(reader, SCORES, 8, &scores);
  tokenizer->sorted = rows(reader, SORTED, 4, &tokenizer->vocabulary);
  tokenizer->merges = rows(reader, MERGES, sizeof(merge), &tokenizer->merge_count);
  if (!tokenizer->tokens || tokenizer->tokens > INT32_MAX || flags != tokenizer->tokens)
    return refuse(reader, "the number of tokens");
  bool unigram = tokenizer->settings[MODEL] == UNIGRAM;
  if (scores != (unigram ? tokenizer->tokens : 0)) return refuse(reader, "the number of scores");
  uint32_t before = 0;
  for (size_t i = 0; i < tokenizer->tokens; before = tokenizer->token_ends[i++])
    if (tokenizer->token_ends[i] < before || tokenizer->token_ends[i] > text_bytes)
      return refuse(reader, "the text of a token");
  if (!ids_fit(tokenizer, tokenizer->sorted, tokenizer->vocabulary))
    return refuse(reader, "the order of tokens");
  double lowest = 0;
  for (size_t i = 0; i < tokenizer->vocabulary; ++i) {
    uint32_t id = tokenizer->sorted[i];
    if (!token_span(tokenizer, id).size) return refuse(reader, "a token without text");
    if (unigram && !(tokenizer->scores[id] > -1e30 && tokenizer->scores[id] < 1e30))
      return refuse(reader, "a score");
    if (unigram && (!i || tokenizer->scores[id] < lowest)) lowest = tokenizer->scores[id];
  }
  /* Unknown characters are by this much less likely than any token (sentencepiece,
   * unigram_model.cc: kUnkPenalty). */
  tokenizer->unknown_score = lowest - 10.0;
  for (size_t i = 0; i < tokenizer->merge_count; ++i) {
    const merge* merge = &tokenizer->merges[i];
    if (merge->left >= tokenizer->tokens || merge->right >= tokenizer->tokens ||
        merge->id >= tokenizer->tokens)
      return refuse(reader, "a merge");
  }
  return true;
}

static bool read_settings(reader* reader, edgec_tokenizer* tokenizer) {
  size_t count, bytes;
  tokenizer->settings = rows(reader, SETTINGS, 4, &count);
  tokenizer->byte_ids = rows(reader, BYTE_IDS, 4, &bytes);
  if (count != SETTING_COUNT) return refuse(reader, "the number of settings");
  const uint32_t* settings = tokenizer->settings;
  if (settings[MODEL] > UNIGRAM || settings[BYTE_TOKENS] > BYTES_IF_UNKNOWN ||
      settings[DECODE_FIRST] > FIRST_DROP_MARKS)
    return refuse(reader, "a setting");
  if (bytes != (settings[BYTE_TOKENS] == BYTES_NONE ? 0 : 256))
    return refuse(reader, "the number of bytes");
  if (!string_fits(tokenizer, settings[DECODE_SPACE], settings[DECODE_SPACE_SIZE]))
    return refuse(reader, "a string");
  return true;
}

static bool read_ids(reader* reader, edgec_tokenizer* tokenizer) {
  tokenizer->prefix = rows(reader, PREFIX, 4, &tokenizer->prefix_count);
  tokenizer->suffix = rows(reader, SUFFIX, 4, &tokenizer->suffix_count);
  tokenizer->stop_tokens = rows(reader, STOP_TOKENS, 4, &tokenizer->stop_count);
  size_t bytes = tokenizer->settings[BYTE_TOKENS] == BYTES_NONE ? 0 : 256;
  uint32_t unknown = tokenizer->settings[UNKNOWN];
  bool replaced = unknown != NO_TOKEN || tokenizer->settings[BYTE_TOKENS] == BYTES_IF_UNKNOWN;
  /* A vocabulary over bytes may lack some; one that falls back to bytes has all. */
  bool lacks = tokenizer->settings[BYTE_TOKENS] == BYTES_ARE_SYMBOLS;
  for (size_t i = 0; i < bytes; ++i)
    if (tokenizer->byte_ids[i] >= tokenizer->tokens && !(lacks && tokenizer->byte_ids[i] == NO_TOKEN))
      return refuse(reader, "the token of a byte");
  if (!ids_fit(tokenizer, tokenizer->prefix, tokenizer->prefix_count) ||
      !ids_fit(tokenizer, tokenizer->suffix, tokenizer->suffix_count) ||
      !ids_fit(tokenizer, tokenizer->stop_tokens, tokenizer->stop_count) ||
      (unknown != NO_TOKEN && unknown >= tokenizer->tokens) ||
      (tokenizer->settings[MODEL] == UNIGRAM && !replaced))
    return refuse(reader, "the id of a token");
  return true;
}

static bool read_chat(reader* reader, edgec_tokenizer* tokenizer) {
  size_t pieces, digest;
  tokenizer->digest = rows(reader, DIGEST, 1, &digest);
  if (digest != 32) return refuse(reader, "the digest");
  tokenizer->chat = rows(reader, CHAT, 8, &pieces);
  tokenizer->has_chat = pieces == CHAT_PIECES;
  if (pieces && !tokenizer->has_chat) return refuse(reader, "the words of chats");
  for (size_t i = 0; i < pieces; ++i) {
    const uint32_t* piece = &tokenizer->chat[2 * i];
    /* A piece that is not there: the model has no such message. */
    if (piece[0] != NO_TOKEN && !string_fits(tokenizer, piece[0], piece[1]))
      return refuse(reader, "the words of chats");
  }
  return true;
}

static bool read_added(reader* reader, edgec_tokenizer* tokenizer) {
  tokenizer->added = rows(reader, ADDED, sizeof(added_token), &tokenizer->added_count);
  for (size_t i = 0; i < tokenizer->added_count; ++i) {
    const added_token* added = &tokenizer->added[i];
    if (added->id >= tokenizer->tokens || !added->size ||
        !string_fits(tokenizer, added->text, added->size))
      return refuse(reader, "an added token");
  }
  size_t bytes = (tokenizer->added_count + 1) * sizeof(uint32_t);
  tokenizer->added_as_given = malloc(bytes);
  tokenizer->added_normalized = malloc(bytes);
  if (!tokenizer->added_as_given || !tokenizer->added_normalized) {
    snprintf(reader->message, reader->room, "no memory for the tokenizer");
    return false;
  }
  for (uint32_t i = 0; i < tokenizer->added_count; ++i) {
    if (tokenizer->added[i].flags & ADDED_NORMALIZED)
      tokenizer->added_normalized[tokenizer->normalized_count++] = i;
    else
      tokenizer->added_as_given[tokenizer->as_given_count++] = i;
  }
  return true;
}

static bool read_all(reader* reader, edgec_tokenizer* tokenizer) {
  if (!read_sections(reader)) return false;
  tokenizer->strings = rows(reader, STRINGS, 1, &tokenizer->string_bytes);
  tokenizer->normalizer =
      rows(reader, NORMALIZER, sizeof(step), &tokenizer->normalizer_steps);
  tokenizer->pretokenizer =
      rows(reader, PRETOKENIZER, sizeof(step), &tokenizer->pretokenizer_steps);
  if (!read_settings(reader, tokenizer) || !read_tokens(reader, tokenizer) ||
      !read_ids(reader, tokenizer) || !read_chat(reader, tokenizer) ||
      !read_added(reader, tokenizer))
    return false;
  if (!steps_fit(tokenizer, tokenizer->normalizer, tokenizer->normalizer_steps, NORMALIZE_KINDS) ||
      !steps_fit(tokenizer, tokenizer->pretokenizer, tokenizer->pretokenizer_steps, SPLIT_KINDS) ||
      !searches_fit(tokenizer))
    return refuse(reader, "a step");
  return true;
}

edgec_tokenizer* edgec_tokenizer_open(const void* data, size_t bytes, char* message, size_t room) {
  edgec_tokenizer* tokenizer = calloc(1, sizeof *tokenizer);
  if (!tokenizer) {
    snprintf(message, room, "no memory for the tokenizer");
    return NULL;
  }
  reader reader = {.data = data, .bytes = bytes, .message = message, .room = room};
  if (read_all(&reader, tokenizer)) return tokenizer;
  edgec_tokenizer_close(tokenizer);
  return NULL;
}

void edgec_tokenizer_close(edgec_tokenizer* tokenizer) {
  if (!tokenizer) return;
  free(tokenizer->added_as_given);
  free(tokenizer->added_normalized);
  free(tokenizer);
}

int32_t edgec_token_count(const edgec_tokenizer* tokenizer) { return (int32_t)tokenizer->tokens; }

const unsigned char* edgec_model_digest(const edgec_tokenizer* tokenizer) {
  return tokenizer->digest;
}

int edgec_is_stop_token(const edgec_tokenizer* tokenizer, int32_t id) {
  for (size_t i = 0; i < tokenizer->stop_count; ++i)
    if (tokenizer->stop_tokens[i] == (uint32_t)id) return 1;
  return 0;
}

span token_span(const edgec_tokenizer* tokenizer, uint32_t id) {
  uint32_t begin = id ? tokenizer->token_ends[id - 1] : 0;
  return (span){tokenizer->token_text + begin, tokenizer->token_ends[id] - begin};
}

span string_at(const edgec_tokenizer* tokenizer, uint32_t offset, uint32_t size) {
  return (span){tokenizer->strings + offset, size};
}
