/* Normalize text, and split it into the words that are encoded one by one. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* ---- memory that grows ---- */

char* buffer_reserve(buffer* buffer, size_t bytes) {
  if (buffer->failed || bytes > SIZE_MAX / 4 - buffer->size) return buffer->failed = true, NULL;
  if (buffer->size + bytes > buffer->room) {
    size_t room = (buffer->size + bytes) * 2 + 64;
    char* data = realloc(buffer->data, room);
    if (!data) return buffer->failed = true, NULL;
    buffer->data = data;
    buffer->room = room;
  }
  return buffer->data + buffer->size;
}

void buffer_append(buffer* buffer, const void* data, size_t bytes) {
  char* to = buffer_reserve(buffer, bytes);
  if (!to || !bytes) return;
  memcpy(to, data, bytes);
  buffer->size += bytes;
}

void buffer_append_u32(buffer* buffer, uint32_t value) {
  buffer_append(buffer, &value, sizeof value);
}

void buffer_free(buffer* buffer) {
  free(buffer->data);
  memset(buffer, 0, sizeof *buffer);
}

size_t piece_count(const pieces* pieces) { return pieces->ends.size / sizeof(size_t); }

span piece_at(const pieces* pieces, size_t index) {
  const size_t* ends = (const size_t*)(const void*)pieces->ends.data;
  size_t begin = index ? ends[index - 1] : 0;
  return (span){pieces->text.data + begin, ends[index] - begin};
}

/* End the piece that was appended to `text`; nothing if it is empty. */
static void piece_end(pieces* pieces) {
  size_t count = piece_count(pieces);
  const size_t* ends = (const size_t*)(const void*)pieces->ends.data;
  if (pieces->text.size > (count ? ends[count - 1] : 0))
    buffer_append(&pieces->ends, &pieces->text.size, sizeof pieces->text.size);
}

void piece_append(pieces* pieces, span text) {
  buffer_append(&pieces->text, text.data, text.size);
  piece_end(pieces);
}

void pieces_clear(pieces* pieces) { pieces->text.size = pieces->ends.size = 0; }

void pieces_free(pieces* pieces) {
  buffer_free(&pieces->text);
  buffer_free(&pieces->ends);
}

/* ---- normalization ---- */

static bool at_text(span text, size_t at, span looked_for) {
  return text.size - at >= looked_for.size &&
         !memcmp(text.data + at, looked_for.data, looked_for.size);
}

static void replace(span text, span from, span to, buffer* result) {
  for (size_t at = 0; at < text.size;) {
    if (at_text(text, at, from)) {
      buffer_append(result, to.data, to.size);
      at += from.size;
    } else {
      buffer_append(result, text.data + at++, 1);
    }
  }
}

void normalize(const edgec_tokenizer* tokenizer, span text, buffer* word, buffer* spare) {
  word->size = 0;
  buffer_append(word, text.data, text.size);
  for (size_t i = 0; i < tokenizer->normalizer_steps && word->size; ++i) {
    const step* step = &tokenizer->normalizer[i];
    span first = string_at(tokenizer, step->first, step->first_size);
    span before = {word->data, word->size};
    spare->size = 0;
    if (step->kind == NORMALIZE_PREPEND) {
      buffer_append(spare, first.data, first.size);
      buffer_append(spare, before.data, before.size);
    } else if (step->kind == NORMALIZE_REPLACE) {
      replace(before, first, string_at(tokenizer, step->second, step->second_size), spare);
    } else {
      normalize_nfc(before, spare);
    }
    buffer swapped = *word;
    *word = *spare;
    *spare = swapped;
  }
}

/* ---- words by the regular expressions of published models, written as scanners ---- */

/* Where the characters of a class that begin at `at` end; `most` of them at most. */
static size_t run(span text, size_t at, int classes, bool wanted, size_t most) {
  for (size_t size; most && at < text.size; at += size, --most) {
    int class = character_class(utf8_code(text.data + at, &size));
    if (!(class & classes) == wanted) break;
  }
  return at;
}

/* The end of 's, 't, 're, 've, 'm, 'll or 'd; `at` if none is there. */
static size_t contraction(span text, size_t at, bool any_case) {
  if (text.data[at] != '\'' || at + 1 == text.size) return at;
  char letters[2] = {text.data[at + 1], at + 2 < text.size ? text.data[at + 2] : 0};
  for (int i = 0; any_case && i < 2; ++i)
    if (letters[i] >= 'A' && letters[i] <= 'Z') letters[i] = (char)(letters[i] - 'A' + 'a');
  if (letters[0] && strchr("stmd", letters[0])) return at + 2;
  bool two = !memcmp(letters, "re", 2) || !memcmp(letters, "ve", 2) || !memcmp(letters, "ll", 2);
  if (two) return at + 3;
  /* Without case the long s (U+017F) is an s, too. */
  static const span long_s = {"\xC5\xBF", 2};
  return any_case && at_text(text, at + 1, long_s) ? at + 3 : at;
}

/* The end of white space, without its last character if a word follows that takes it:
 * \s+(?!\S)|\s+ */
static size_t white_space(span text, size_t at) {
  size_t last = at, end = at;
  for (size_t size; end < text.size; last = end, end += size)
    if (!(character_class(utf8_code(text.data + end, &size)) & SPACE)) break;
  return end < text.size && last > at ? last : end;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t word_of_gpt2(span text, size_t at) {
  size_t end = contraction(text, at, false), size;
  if (end > at) return end;
  size_t from = at + (text.data[at] == ' ' && at + 1 < text.size);
  int class = character_class(utf8_code(text.data + from, &size));
  if (class & (LETTER | NUMBER)) return run(text, from, class, true, SIZE_MAX);
  if (!(class & SPACE)) return run(text, from, LETTER | NUMBER | SPACE, false, SIZE_MAX);
  return white_space(text, at);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,N}| ?[^\s\p{L}\p{N}]+[\r\n]*
 * |\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t word_of_llama3(span text, size_t at, size_t digits) {
  size_t end = contraction(text, at, true), size, next_size;
  if (end > at) return end;
  int class = character_class(utf8_code(text.data + at, &size)), next = 0;
  if (at + size < text.size) next = character_class(utf8_code(text.data + at + size, &next_size));
  if (class & LETTER || (next & LETTER && !(class & (NEWLINE | NUMBER))))
    return run(text, at + size, LETTER, true, SIZE_MAX);
  if (class & NUMBER) return run(text, at, NUMBER, true, digits);
  size_t from = at + (text.data[at] == ' ' && at + 1 < text.size);
  if (!((from > at ? next : class) & (SPACE | LETTER | NUMBER))) {
    end = run(text, from, LETTER | NUMBER | SPACE, false, SIZE_MAX);
    return run(text, end, NEWLINE, true, SIZE_MAX);
  }
  size_t spaces = run(text, at, SPACE, true, SIZE_MAX);
  for (end = spaces; end > at; --end)
    if (text.data[end - 1] == '\n' || text.data[end - 1] == '\r') return end;
  return white_space(text, at);
}

static size_t word_of_digits(span text, size_t at, bool alone) {
  size_t size;
  if (character_class(utf8_code(text.data + at, &size)) & NUMBER)
    return run(text, at, NUMBER, true, alone ? 1 : SIZE_MAX);
  return run(text, at, NUMBER, false, SIZE_MAX);
}

/* ---- splits at a text ---- */

static size_t next_match(span text, size_t at, span looked_for) {
  while (at < text.size && !at_text(text, at, looked_for)) ++at;
  return at;
}

/* Split at each occurrence. Of occurrences in a row the first merges with what is before, or the
 * last with what is behind; the others stand alone (SplitDelimiterBehavior of `tokenizers`). */
static void split_at(span text, span looked_for, uint32_t behavior, pieces* words) {
  size_t begin = 0; /* of the word that is not yet given */
  for (size_t at = next_match(text, 0, looked_for); at < text.size;) {
    size_t end = at + looked_for.size, next = next_match(text, end, looked_for);
    bool merges_back = behavior == MERGED_WITH_PREVIOUS && begin < at;
    if (!merges_back) piece_append(words, (span){text.data + begin, at - begin});
    if (merges_back)
      piece_append(words, (span){text.data + begin, end - begin});
    else if (behavior == MERGED_WITH_NEXT && next > end)
      end = at; /* it begins the next word */
    else if (behavior != REMOVED)
      piece_append(words, (span){text.data + at, end - at});
    begin = end;
    at = next;
  }
  piece_append(words, (span){text.data + begin, text.size - begin});
}

static void metaspace(const step* step, span mark, span text, bool begins, pieces* words,
                      buffer* spare) {
  static const span space = {" ", 1};
  spare->size = 0;
  if (step->behavior == PREPEND_ALWAYS || (step->behavior == PREPEND_FIRST && begins)) {
    bool there = at_text(text, 0, mark) || at_text(text, 0, space);
    if (!there) buffer_append(spare, mark.data, mark.size);
  }
  replace(text, space, mark, spare);
  span marked = {spare->data, spare->size};
  if (step->number)
    split_at(marked, mark, MERGED_WITH_NEXT, words);
  else
    piece_append(words, marked);
}

/* ---- all steps ---- */

static void split_words(const step* step, span text, pieces* words) {
  for (size_t at = 0, end = 0; at < text.size; at = end) {
    if (step->kind == SPLIT_GPT2)
      end = word_of_gpt2(text, at);
    else if (step->kind == SPLIT_LLAMA3)
      end = word_of_llama3(text, at, step->number);
    else
      end = word_of_digits(text, at, step->number);
    piece_append(words, (span){text.data + at, end - at});
  }
}

void pretokenize(const edgec_tokenizer* tokenizer, span text, bool begins, pieces* words,
                 pieces* spare) {
  buffer marked = {0};
  pieces_clear(words);
  piece_append(words, text);
  for (size_t i = 0; i < tokenizer->pretokenizer_steps; ++i) {
    const step* step = &tokenizer->pretokenizer[i];
    span first = string_at(tokenizer, step->first, step->first_size);
    pieces_clear(spare);
    for (size_t j = 0; j < piece_count(words) && !spare->ends.failed; ++j) {
      span word = piece_at(words, j);
      if (step->kind == SPLIT_TEXT) {
        split_at(word, first, step->behavior, spare);
      } else if (step->kind == SPLIT_METASPACE) {
        metaspace(step, first, word, begins && !j, spare, &marked);
      } else if (step->kind == PREPEND_SPACE) {
        if (word.data[0] != ' ') buffer_append(&spare->text, " ", 1);
        piece_append(spare, word);
      } else {
        split_words(step, word, spare);
      }
    }
    pieces swapped = *words;
    *words = *spare;
    *spare = swapped;
  }
  words->text.failed |= marked.failed;
  buffer_free(&marked);
}
