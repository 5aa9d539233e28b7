/* Words to tokens: byte-pair encoding and Unigram, as the package `tokenizers` defines them. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* ---- texts in the order of their bytes ---- */

sorted_texts vocabulary(const edgec_tokenizer* tokenizer) {
  return (sorted_texts){tokenizer, tokenizer->sorted, tokenizer->vocabulary, token_span};
}

/* The byte of a text at a depth, -1 behind its end. */
static int byte_at(const sorted_texts* texts, size_t at, size_t depth) {
  span text = texts->text(texts->tokenizer, texts->rows[at]);
  return depth < text.size ? (unsigned char)text.data[depth] : -1;
}

/* The first text of the range whose byte is not below. */
static size_t first_from(const sorted_texts* texts, prefix_range range, int byte) {
  while (range.low < range.high) {
    size_t middle = (range.low + range.high) / 2;
    if (byte_at(texts, middle, range.depth) < byte)
      range.low = middle + 1;
    else
      range.high = middle;
  }
  return range.low;
}

size_t narrow(const sorted_texts* texts, prefix_range* range, char byte) {
  int wanted = (unsigned char)byte;
  range->low = first_from(texts, *range, wanted);
  range->high = first_from(texts, *range, wanted + 1);
  ++range->depth;
  bool ends = range->low < range->high && byte_at(texts, range->low, range->depth) < 0;
  return ends ? range->low : NO_ROW;
}

uint32_t find_token(const edgec_tokenizer* tokenizer, span text) {
  size_t low = 0, high = tokenizer->vocabulary;
  while (low < high) {
    size_t middle = (low + high) / 2;
    span there = token_span(tokenizer, tokenizer->sorted[middle]);
    int order = memcmp(there.data, text.data, there.size < text.size ? there.size : text.size);
    if (order ? order < 0 : there.size < text.size)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == tokenizer->vocabulary) return NO_TOKEN;
  uint32_t id = tokenizer->sorted[low];
  span there = token_span(tokenizer, id);
  return there.size == text.size && !memcmp(there.data, text.data, text.size) ? id : NO_TOKEN;
}

/* ---- byte-pair encoding ---- */

/* A symbol of a word. Symbols are merged into the left one. */
typedef struct {
  uint32_t id;
  int32_t previous, next; /* -1: none */
} symbol;

/* Two neighbours that may be merged. */
typedef struct {
  uint32_t rank, left, right, id;
  int32_t at; /* of the left symbol */
} candidate;

static const merge* find_merge(const edgec_tokenizer* tokenizer, uint32_t left, uint32_t right) {
  size_t low = 0, high = tokenizer->merge_count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    const merge* merge = &tokenizer->merges[middle];
    if (merge->left < left || (merge->left == left && merge->right < right))
      low = middle + 1;
    else
      high = middle;
  }
  const merge* found = &tokenizer->merges[low];
  bool there = low < tokenizer->merge_count && found->left == left && found->right == right;
  return there ? found : NULL;
}

static bool before(const candidate* one, const candidate* other) {
  return one->rank < other->rank || (one->rank == other->rank && one->at < other->at);
}

static void push(buffer* heap, candidate candidate_) {
  buffer_append(heap, &candidate_, sizeof candidate_);
  if (heap->failed) return;
  candidate* list = (candidate*)(void*)heap->data;
  size_t at = heap->size / sizeof *list - 1;
  for (; at && before(&candidate_, &list[(at - 1) / 2]); at = (at - 1) / 2)
    list[at] = list[(at - 1) / 2];
  list[at] = candidate_;
}

static candidate pop(buffer* heap) {
  candidate* list = (candidate*)(void*)heap->data;
  heap->size -= sizeof *list;
  size_t count = heap->size / sizeof *list, at = 0;
  candidate top = list[0], moved = list[count];
  for (size_t child = 1; child < count; at = child, child = 2 * at + 1) {
    if (child + 1 < count && before(&list[child + 1], &list[child])) ++child;
    if (!before(&list[child], &moved)) break;
    list[at] = list[child];
  }
  list[at] = moved;
  return top;
}

static void add_symbol(buffer* symbols, uint32_t id) {
  int32_t at = (int32_t)(symbols->size / sizeof(symbol));
  symbol added = {id, at - 1, at + 1};
  buffer_append(symbols, &added, sizeof added);
}

/* A word's first symbols: bytes, or characters. */
static void split_symbols(encoder* encoder, span word) {
  const edgec_tokenizer* tokenizer = encoder->tokenizer;
  const uint32_t* settings = tokenizer->settings;
  bool unknown_before = false, bytes = settings[BYTE_TOKENS] == BYTES_ARE_SYMBOLS;
  encoder->symbols.size = 0;
  for (size_t at = 0, size = 1; at < word.size; at += size) {
    if (!bytes) utf8_code(word.data + at, &size);
    uint32_t id = bytes ? tokenizer->byte_ids[(unsigned char)word.data[at]]
                        : find_token(tokenizer, (span){word.data + at, size});
    bool unknown = id == NO_TOKEN;
    if (!unknown) {
      add_symbol(&encoder->symbols, id);
    } else if (settings[BYTE_TOKENS] == BYTES_IF_UNKNOWN) {
      for (size_t i = at; i < at + size; ++i)
        add_symbol(&encoder->symbols, tokenizer->byte_ids[(unsigned char)word.data[i]]);
    } else if (settings[UNKNOWN] != NO_TOKEN && !(unknown_before && settings[FUSE_UNKNOWN])) {
      add_symbol(&encoder->symbols, settings[UNKNOWN]);
    }
    unknown_before = unknown;
  }
}

/* Note that the symbol at a place and the next one may be merged. */
static void propose(encoder* encoder, int32_t at) {
  const symbol* symbols = (const symbol*)(const void*)encoder->symbols.data;
  if (at < 0 || symbols[at].next < 0) return;
  uint32_t left = symbols[at].id, right = symbols[symbols[at].next].id;
  const merge* merge = find_merge(encoder->tokenizer, left, right);
  if (merge) push(&encoder->heap, (candidate){merge->rank, left, right, merge->id, at});
}

/* Merge the neighbours of the lowest rank, the leftmost first, until none are left. */
static void merge_symbols(encoder* encoder) {
  symbol* symbols = (symbol*)(void*)encoder->symbols.data;
  int32_t count = (int32_t)(encoder->symbols.size / sizeof *symbols);
  encoder->heap.size = 0;
  for (int32_t i = 0; i + 1 < count; ++i) propose(encoder, i);
  while (encoder->heap.size && !encoder->heap.failed) {
    candidate best = pop(&encoder->heap);
    symbol* left = &symbols[best.at];
    /* One of the two may have been merged with another one since. */
    if (left->id != best.left || left->next < 0 || symbols[left->next].id != best.right) continue;
    symbol* right = &symbols[left->next];
    left->id = best.id;
    right->id = NO_TOKEN;
    left->next = right->next;
    if (right->next >= 0) symbols[right->next].previous = best.at;
    propose(encoder, left->previous);
    propose(encoder, best.at);
  }
}

void encode_bpe(encoder* encoder, span word) {
  const edgec_tokenizer* tokenizer = encoder->tokenizer;
  if (tokenizer->settings[WHOLE_WORDS]) {
    uint32_t id = find_token(tokenizer, word);
    if (id != NO_TOKEN) {
      buffer_append_u32(&encoder->ids, id);
      return;
    }
  }
  split_symbols(encoder, word);
  encoder->ids.failed |= encoder->symbols.failed;
  if (encoder->symbols.failed || !encoder->symbols.size) return;
  symbol* symbols = (symbol*)(void*)encoder->symbols.data;
  symbols[encoder->symbols.size / sizeof *symbols - 1].next = -1;
  merge_symbols(encoder);
  encoder->ids.failed |= encoder->heap.failed;
  for (int32_t at = 0; at >= 0; at = symbols[at].next)
    buffer_append_u32(&encoder->ids, symbols[at].id);
}

/* ---- Unigram ---- */

/* The best way to where a token ends. */
typedef struct {
  double score;
  uint32_t id;
  uint32_t size; /* of the token in bytes; 0: no way leads here */
} arrival;

static void arrive(arrival* arrivals, size_t at, uint32_t size, double score, uint32_t id) {
  arrival* there = &arrivals[at + size];
  double whole = arrivals[at].score + score;
  if (!there->size || whole > there->score) *there = (arrival){whole, id, size};
}

static void unknown_tokens(encoder* encoder, span text) {
  const edgec_tokenizer* tokenizer = encoder->tokenizer;
  uint32_t id = find_token(tokenizer, text);
  if (id != NO_TOKEN || tokenizer->settings[BYTE_TOKENS] != BYTES_IF_UNKNOWN) {
    buffer_append_u32(&encoder->ids, id == NO_TOKEN ? tokenizer->settings[UNKNOWN] : id);
    return;
  }
  for (size_t i = 0; i < text.size; ++i)
    buffer_append_u32(&encoder->ids, tokenizer->byte_ids[(unsigned char)text.data[i]]);
}

/* The tokens on the best way, from the back to the front in `path`, then in order. */
static void follow_back(encoder* encoder, span word, const arrival* arrivals) {
  bool fuse = encoder->tokenizer->settings[FUSE_UNKNOWN];
  encoder->path.size = 0;
  for (size_t end = word.size; end; end -= arrivals[end].size)
    buffer_append(&encoder->path, &arrivals[end], sizeof(arrival));
  encoder->ids.failed |= encoder->path.failed;
  if (encoder->path.failed) return;
  const arrival* path = (const arrival*)(const void*)encoder->path.data;
  size_t at = 0, unknown = 0; /* bytes of unknown characters before `at` */
  for (size_t i = encoder->path.size / sizeof *path; i--; at += path[i].size) {
    if (path[i].id != NO_TOKEN) {
      if (unknown) unknown_tokens(encoder, (span){word.data + at - unknown, unknown});
      unknown = 0;
      buffer_append_u32(&encoder->ids, path[i].id);
    } else if (fuse) {
      unknown += path[i].size;
    } else {
      unknown_tokens(encoder, (span){word.data + at, path[i].size});
    }
  }
  if (unknown) unknown_tokens(encoder, (span){word.data + at - unknown, unknown});
}

/* The tokens of the largest sum of scores (Kudo 2018, by the algorithm of Viterbi). */
void encode_unigram(encoder* encoder, span word) {
  const edgec_tokenizer* tokenizer = encoder->tokenizer;
  encoder->symbols.size = 0;
  size_t bytes = (word.size + 1) * sizeof(arrival);
  arrival* arrivals = (arrival*)(void*)buffer_reserve(&encoder->symbols, bytes);
  encoder->ids.failed |= encoder->symbols.failed;
  if (!arrivals) return;
  memset(arrivals, 0, bytes);
  sorted_texts texts = vocabulary(tokenizer);
  for (size_t at = 0, size; at < word.size; at += size) {
    bool whole = false;
    utf8_code(word.data + at, &size);
    prefix_range range = {0, texts.count, 0};
    for (size_t end = at; end < word.size && range.low < range.high; ++end) {
      size_t row = narrow(&texts, &range, word.data[end]);
      if (row == NO_ROW) continue;
      uint32_t id = texts.rows[row], length = (uint32_t)(end + 1 - at);
      arrive(arrivals, at, length, tokenizer->scores[id], id);
      whole |= length == size;
    }
    if (!whole) arrive(arrivals, at, (uint32_t)size, tokenizer->unknown_score, NO_TOKEN);
  }
  follow_back(encoder, word, arrivals);
}
