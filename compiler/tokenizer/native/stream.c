/* Tokens to text as they come, and the words of a chat. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

struct edgec_stream {
  const edgec_tokenizer* tokenizer;
  bool first, special;   /* no text yet; text of special tokens, too */
  bool stopped, wrong;   /* a stop string was found; bytes of this run are no UTF-8 */
  unsigned char held[4]; /* bytes of a character that is not complete */
  size_t held_count;
  buffer text;  /* what was not given yet */
  buffer given; /* what the last call gave */
  buffer stops; /* stop strings: a size_t and the bytes of each */
};

edgec_stream* edgec_stream_open(const edgec_tokenizer* tokenizer, int continues, int special) {
  edgec_stream* stream = calloc(1, sizeof *stream);
  if (!stream) return NULL;
  stream->tokenizer = tokenizer;
  stream->first = !continues;
  stream->special = special;
  return stream;
}

void edgec_stream_close(edgec_stream* stream) {
  if (!stream) return;
  buffer_free(&stream->text);
  buffer_free(&stream->given);
  buffer_free(&stream->stops);
  free(stream);
}

int edgec_stream_stop_at(edgec_stream* stream, const char* text, size_t bytes) {
  if (!utf8_valid(text, bytes)) return EDGEC_TEXT_NOT_UTF8;
  if (!bytes) return 0;
  buffer_append(&stream->stops, &bytes, sizeof bytes);
  buffer_append(&stream->stops, text, bytes);
  return stream->stops.failed ? EDGEC_TEXT_NO_MEMORY : 0;
}

int edgec_stream_stopped(const edgec_stream* stream) { return stream->stopped; }

/* ---- bytes to characters ---- */

/* What stands for bytes that are no character: U+FFFD. */
static void replacement(buffer* text) { buffer_append(text, "\xEF\xBF\xBD", 3); }

/* Take a byte. Each longest beginning of a character that does not go on is one replacement, as
 * the Unicode Standard recommends in section 3.9 and Rust's from_utf8_lossy does. */
static void put_byte(edgec_stream* stream, unsigned char byte) {
  int step = utf8_step(stream->held, stream->held_count, byte);
  if (step == UTF8_WRONG && stream->held_count) {
    replacement(&stream->text);
    stream->held_count = 0;
    step = utf8_step(stream->held, 0, byte);
  }
  if (step == UTF8_WRONG) {
    replacement(&stream->text);
    return;
  }
  stream->held[stream->held_count++] = byte;
  if (step == UTF8_PART) return;
  buffer_append(&stream->text, stream->held, stream->held_count);
  stream->held_count = 0;
}

/* Take a byte of a run of byte tokens: in a run that is no UTF-8 each byte is one replacement. */
static void put_byte_token(edgec_stream* stream, unsigned char byte) {
  if (!stream->wrong && utf8_step(stream->held, stream->held_count, byte) != UTF8_WRONG) {
    put_byte(stream, byte);
    return;
  }
  for (; stream->held_count; --stream->held_count) replacement(&stream->text);
  replacement(&stream->text);
  stream->wrong = true;
}

/* What is held of a character will not be completed. */
static void end_bytes(edgec_stream* stream) {
  bool tokens = stream->tokenizer->settings[BYTE_TOKENS] == BYTES_IF_UNKNOWN;
  if (stream->held_count && !tokens) stream->held_count = 1;
  for (; stream->held_count; --stream->held_count) replacement(&stream->text);
  stream->wrong = false;
}

/* ---- tokens to bytes ---- */

static void put_text(edgec_stream* stream, span text) {
  const edgec_tokenizer* tokenizer = stream->tokenizer;
  const uint32_t* settings = tokenizer->settings;
  span mark = string_at(tokenizer, settings[DECODE_SPACE], settings[DECODE_SPACE_SIZE]);
  bool drops = stream->first && settings[DECODE_FIRST] == FIRST_DROP_MARKS;
  bool strips = stream->first && settings[DECODE_FIRST] == FIRST_STRIP_SPACE;
  for (size_t at = 0; at < text.size;) {
    bool space = mark.size && text.size - at >= mark.size &&
                 !memcmp(text.data + at, mark.data, mark.size);
    unsigned char byte = space ? ' ' : (unsigned char)text.data[at];
    at += space ? mark.size : 1;
    bool dropped = (space && drops) || (strips && byte == ' ');
    strips = false;
    if (!dropped) put_byte(stream, byte);
  }
  stream->first = false;
}

static void put_token(edgec_stream* stream, uint32_t id) {
  const edgec_tokenizer* tokenizer = stream->tokenizer;
  uint8_t flags = tokenizer->token_flags[id];
  if (flags & TOKEN_SPECIAL && !stream->special) return;
  span text = token_span(tokenizer, id);
  if (tokenizer->settings[BYTE_TOKENS] != BYTES_IF_UNKNOWN) {
    put_text(stream, text);
    return;
  }
  if (flags & TOKEN_BYTE && text.size == 6) { /* <0xNN> */
    char digits[3] = {text.data[3], text.data[4], 0};
    unsigned char byte = (unsigned char)strtol(digits, NULL, 16);
    bool dropped = stream->first && byte == ' ' &&
                   tokenizer->settings[DECODE_FIRST] == FIRST_STRIP_SPACE;
    stream->first = false;
    if (!dropped) put_byte_token(stream, byte);
    return;
  }
  end_bytes(stream);
  put_text(stream, text);
}

int64_t edgec_token_bytes(const edgec_tokenizer* tokenizer, int32_t id, char* bytes, size_t room) {
  if (id < 0 || (size_t)id >= tokenizer->tokens) return -1;
  uint8_t flags = tokenizer->token_flags[id];
  if (flags & TOKEN_SPECIAL) return -1;
  span text = token_span(tokenizer, (uint32_t)id);
  const uint32_t* settings = tokenizer->settings;
  if (settings[BYTE_TOKENS] == BYTES_IF_UNKNOWN && flags & TOKEN_BYTE && text.size == 6) {
    char digits[3] = {text.data[3], text.data[4], 0};
    if (room) bytes[0] = (char)strtol(digits, NULL, 16);
    return 1;
  }
  span mark = string_at(tokenizer, settings[DECODE_SPACE], settings[DECODE_SPACE_SIZE]);
  size_t count = 0;
  for (size_t at = 0; at < text.size; ++count) {
    bool space = mark.size && text.size - at >= mark.size &&
                 !memcmp(text.data + at, mark.data, mark.size);
    if (count < room) bytes[count] = space ? ' ' : text.data[at];
    at += space ? mark.size : 1;
  }
  return (int64_t)count;
}

/* ---- stop strings ---- */

/* Where the first stop string begins, and the last place up to which text may be given. */
static size_t find_stop(const edgec_stream* stream, size_t* giveable) {
  size_t found = SIZE_MAX, size;
  *giveable = stream->text.size;
  for (size_t at = 0; at < stream->stops.size; at += sizeof size + size) {
    memcpy(&size, stream->stops.data + at, sizeof size);
    const char* stop = stream->stops.data + at + sizeof size;
    for (size_t begin = 0; begin < stream->text.size && begin < found; ++begin) {
      size_t left = stream->text.size - begin;
      if (memcmp(stream->text.data + begin, stop, left < size ? left : size)) continue;
      if (left >= size)
        found = begin;
      else if (begin < *giveable)
        *giveable = begin;
    }
  }
  return found;
}

/* Hand out the text up to a place, and keep the rest. */
static int64_t give(edgec_stream* stream, size_t bytes, const char** text) {
  stream->given.size = 0;
  buffer_append(&stream->given, stream->text.data, bytes);
  if (stream->given.failed || stream->text.failed) return EDGEC_TEXT_NO_MEMORY;
  if (bytes) memmove(stream->text.data, stream->text.data + bytes, stream->text.size - bytes);
  stream->text.size -= bytes;
  *text = stream->given.data;
  return (int64_t)bytes;
}

static int64_t give_until_stop(edgec_stream* stream, bool ends, const char** text) {
  *text = "";
  if (stream->stopped) return 0;
  size_t giveable, found = find_stop(stream, &giveable);
  if (found != SIZE_MAX) {
    stream->stopped = true;
    return give(stream, found, text);
  }
  return give(stream, ends ? stream->text.size : giveable, text);
}

int64_t edgec_stream_put(edgec_stream* stream, int32_t id, const char** text) {
  if (id >= 0 && (size_t)id < stream->tokenizer->tokens && !stream->stopped)
    put_token(stream, (uint32_t)id);
  return give_until_stop(stream, false, text);
}

int64_t edgec_stream_end(edgec_stream* stream, const char** text) {
  if (!stream->stopped) end_bytes(stream);
  return give_until_stop(stream, true, text);
}

/* ---- conversations ---- */

/* The piece between two messages, CHAT_PIECES if no model has such neighbours. */
static enum chat_piece piece_between(const char* before, const char* role) {
  bool user = !strcmp(role, "user"), from_user = before && !strcmp(before, "user");
  if (!before && !strcmp(role, "system")) return BEFORE_SYSTEM;
  if (!before && user) return BEFORE_FIRST_USER;
  if (before && !strcmp(before, "system") && user) return SYSTEM_TO_USER;
  if (before && !strcmp(before, "assistant") && user) return ASSISTANT_TO_USER;
  if (from_user && !strcmp(role, "assistant")) return USER_TO_ASSISTANT;
  return CHAT_PIECES;
}

static bool put_piece(const edgec_tokenizer* tokenizer, enum chat_piece piece, buffer* text) {
  const uint32_t* place = &tokenizer->chat[2 * piece];
  if (piece == CHAT_PIECES || place[0] == NO_TOKEN) return false;
  span words = string_at(tokenizer, place[0], place[1]);
  buffer_append(text, words.data, words.size);
  return true;
}

static span trimmed(span text) {
  size_t begin = 0, end = text.size, last = 0, size;
  while (begin < end && character_class(utf8_code(text.data + begin, &size)) & SPACE)
    begin += size;
  for (size_t at = begin; at < end; at += size)
    if (!(character_class(utf8_code(text.data + at, &size)) & SPACE)) last = at + size;
  return (span){text.data + begin, last > begin ? last - begin : 0};
}

int64_t edgec_chat_text(const edgec_tokenizer* tokenizer, const char* const* roles,
                        const char* const* contents, size_t messages, char** text) {
  buffer result = {0};
  *text = NULL;
  buffer_reserve(&result, 1);
  bool fits = tokenizer->has_chat && messages && !strcmp(roles[messages - 1], "user");
  for (size_t i = 0; i < messages && fits; ++i) {
    const char* before = i ? roles[i - 1] : NULL;
    span content = {contents[i], strlen(contents[i])};
    if (!utf8_valid(content.data, content.size)) {
      buffer_free(&result);
      return EDGEC_TEXT_NOT_UTF8;
    }
    if (tokenizer->settings[CHAT_TRIMS]) content = trimmed(content);
    fits = put_piece(tokenizer, piece_between(before, roles[i]), &result);
    buffer_append(&result, content.data, content.size);
  }
  fits = fits && put_piece(tokenizer, USER_TO_ANSWER, &result);
  if (!fits || result.failed) {
    int problem = result.failed ? EDGEC_TEXT_NO_MEMORY : EDGEC_TEXT_NO_CHAT;
    buffer_free(&result);
    return problem;
  }
  *text = result.data;
  return (int64_t)result.size;
}
