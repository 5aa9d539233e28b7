/* What the files of the tokenizer share; programs include generation.h. */
#ifndef EDGEC_TOKENIZER_H
#define EDGEC_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "generation.h"

#define NO_TOKEN UINT32_MAX

/* ---- memory that grows ---- */

/* Bytes that grow. A buffer that got no memory is `failed` and takes nothing more. */
typedef struct {
  char* data;
  size_t size, room;
  bool failed;
} buffer;

/* Room for so many more bytes, or NULL. They count when `size` is raised. */
char* buffer_reserve(buffer* buffer, size_t bytes);
void buffer_append(buffer* buffer, const void* data, size_t bytes);
void buffer_append_u32(buffer* buffer, uint32_t value);
void buffer_free(buffer* buffer);

typedef struct {
  const char* data;
  size_t size;
} span;

/* ---- the file ---- */

/* tokenizer.bin: the magic bytes, a table of offset and size in bytes (uint32 each) for each
 * section below, then the sections, each aligned to 8 bytes. All numbers are little-endian. */
#define TOKENIZER_MAGIC "EDGECTK1"

enum section {
  SETTINGS,     /* uint32: see `setting` */
  NORMALIZER,   /* steps */
  PRETOKENIZER, /* steps */
  STRINGS,      /* text that other sections refer to by offset and size */
  TOKEN_ENDS,   /* uint32 by id: where its text ends in TOKEN_TEXT; it begins where the last ended */
  TOKEN_TEXT,
  TOKEN_FLAGS, /* uint8 by id: see `token_flag` */
  SORTED,      /* uint32: ids of the vocabulary in the order of their text's bytes */
  MERGES,      /* merge: in the order of left, then right */
  SCORES,      /* float64 by id; of Unigram only */
  BYTE_IDS,    /* uint32 by byte: its token */
  ADDED,       /* added_token: found before all else, in the order of their text's bytes */
  PREFIX,      /* uint32: tokens that begin a text */
  SUFFIX,      /* uint32: tokens that end a text */
  STOP_TOKENS, /* uint32: tokens that a model says when its text is complete */
  DIGEST,       /* 32 bytes that tell the model from others */
  CHAT,        /* string references: see `chat_piece`; empty if there is no form for chats */
  SECTION_COUNT
};

enum setting {
  MODEL,          /* BPE or UNIGRAM */
  UNKNOWN,        /* id, or NO_TOKEN */
  BYTE_TOKENS,    /* BYTES_NONE, BYTES_ARE_SYMBOLS or BYTES_IF_UNKNOWN */
  FUSE_UNKNOWN,   /* unknown characters in a row are one token */
  WHOLE_WORDS,    /* a word that is a token is not put together by merges */
  DECODE_SPACE,   /* string reference of what stands for a space, size 0: nothing does */
  DECODE_SPACE_SIZE,
  DECODE_FIRST,   /* FIRST_KEEP, FIRST_STRIP_SPACE or FIRST_DROP_MARKS */
  CHAT_TRIMS,     /* white space around messages is cut off */
  SETTING_COUNT
};

enum { BPE, UNIGRAM };
enum { BYTES_NONE, BYTES_ARE_SYMBOLS, BYTES_IF_UNKNOWN };
/* What becomes of a space that the first token of a text begins with. */
enum { FIRST_KEEP, FIRST_STRIP_SPACE, FIRST_DROP_MARKS };

/* Bits of TOKEN_FLAGS. */
enum token_flag { TOKEN_SPECIAL = 1, TOKEN_BYTE = 2 };

/* A step is eight uint32: what it does, a number, two string references, and two more numbers. */
typedef struct {
  uint32_t kind, number;
  uint32_t first, first_size, second, second_size;
  uint32_t behavior, spare;
} step;

enum { NORMALIZE_PREPEND, NORMALIZE_REPLACE, NORMALIZE_NFC, NORMALIZE_KINDS };
enum {
  SPLIT_GPT2,      /* words of GPT-2's expression */
  SPLIT_LLAMA3,    /* words of Llama 3's; `number`: how many digits stay together */
  SPLIT_DIGITS,    /* `number`: 1: each by itself; 0: as many as there are together */
  SPLIT_TEXT,      /* at a text, with a `behavior` */
  SPLIT_METASPACE, /* `first` for a space and before the text, as `behavior` says; `number`: split */
  PREPEND_SPACE,   /* before each text that does not begin with one */
  SPLIT_KINDS
};
enum { MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, ISOLATED, REMOVED, BEHAVIORS };
enum { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER, PREPEND_SCHEMES };

typedef struct {
  uint32_t left, right, rank, id;
} merge;

typedef struct {
  uint32_t id, flags, text, size;
} added_token;

/* Bits of added_token.flags: white space before and behind belongs to it; it is looked for in the
 * normalized text. */
enum { ADDED_LSTRIP = 1, ADDED_RSTRIP = 2, ADDED_NORMALIZED = 4 };

/* The words of a chat between its messages. */
enum chat_piece {
  BEFORE_SYSTEM,
  BEFORE_FIRST_USER,
  SYSTEM_TO_USER,
  USER_TO_ASSISTANT,
  ASSISTANT_TO_USER,
  USER_TO_ANSWER,
  CHAT_PIECES
};

struct edgec_tokenizer {
  const uint32_t* settings;
  const step* normalizer;
  const step* pretokenizer;
  const char* strings;
  const uint32_t* token_ends;
  const char* token_text;
  const uint8_t* token_flags;
  const uint32_t* sorted;
  const merge* merges;
  const double* scores;
  const uint32_t* byte_ids;
  const added_token* added;
  const uint32_t *prefix, *suffix, *stop_tokens, *chat;
  size_t normalizer_steps, pretokenizer_steps, string_bytes, tokens, vocabulary, merge_count;
  size_t added_count, prefix_count, suffix_count, stop_count;
  const unsigned char* digest;
  bool has_chat;
  double unknown_score; /* of Unigram */
  /* Positions in `added` of tokens looked for in the given text, and in the normalized one. */
  uint32_t* added_as_given;
  uint32_t* added_normalized;
  size_t as_given_count, normalized_count;
};

span token_span(const edgec_tokenizer* tokenizer, uint32_t id);
span string_at(const edgec_tokenizer* tokenizer, uint32_t offset, uint32_t size);

/* ---- characters ---- */

enum { LETTER = 1, NUMBER = 2, SPACE = 4, NEWLINE = 8 };

/* Bits of the above for a code point. */
int character_class(uint32_t code);

/* The code point at `text`, which is valid UTF-8, and its size in bytes. */
uint32_t utf8_code(const char* text, size_t* size);
size_t utf8_encode(uint32_t code, char text[4]);
bool utf8_valid(const char* text, size_t bytes);

/* How far a byte takes a character: UTF8_WHOLE, UTF8_PART, or UTF8_WRONG. `held` are the `count`
 * bytes before it, which are UTF8_PART. */
enum { UTF8_WHOLE, UTF8_PART, UTF8_WRONG };
int utf8_step(const unsigned char* held, size_t count, unsigned char byte);

/* Compose characters (Unicode's form NFC). */
void normalize_nfc(span text, buffer* composed);

/* ---- stages ---- */

/* Texts one behind the other, and where each of them ends (size_t). */
typedef struct {
  buffer text, ends;
} pieces;

size_t piece_count(const pieces* pieces);
span piece_at(const pieces* pieces, size_t index);
void piece_append(pieces* pieces, span text);
void pieces_clear(pieces* pieces);
void pieces_free(pieces* pieces);

/* `word` has room for the result, `spare` for what comes between. */
void normalize(const edgec_tokenizer* tokenizer, span text, buffer* word, buffer* spare);

/* Split into words. `begins`: whether it is the beginning of the whole text. The result is in
 * `*words`; both are changed. */
void pretokenize(const edgec_tokenizer* tokenizer, span text, bool begins, pieces* words,
                 pieces* spare);

/* ---- tokens ---- */

/* A list of texts in the order of their bytes: tokens of the vocabulary, or added tokens. */
typedef struct {
  const edgec_tokenizer* tokenizer;
  const uint32_t* rows;
  size_t count;
  span (*text)(const edgec_tokenizer* tokenizer, uint32_t row);
} sorted_texts;

/* The rows of a list that begin with a text that grows byte by byte. */
typedef struct {
  size_t low, high, depth;
} prefix_range;

#define NO_ROW SIZE_MAX

sorted_texts vocabulary(const edgec_tokenizer* tokenizer);

/* Narrow to texts with this byte next; the place in the list of the text that ends there, or
 * NO_ROW. */
size_t narrow(const sorted_texts* texts, prefix_range* range, char byte);
uint32_t find_token(const edgec_tokenizer* tokenizer, span text);

/* What encoding needs beside the tokenizer, used again from word to word. */
typedef struct {
  const edgec_tokenizer* tokenizer;
  buffer ids, symbols, heap, path, normalized, spare;
  pieces words, spare_words;
} encoder;

void encode_bpe(encoder* encoder, span word);
void encode_unigram(encoder* encoder, span word);

#endif
