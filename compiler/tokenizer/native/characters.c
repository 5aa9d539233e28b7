/* Characters: UTF-8, classes and composition. Tables: unicode_tables.h. */
#include "tokenizer.h"

#include "unicode_tables.h"

/* ---- UTF-8 ---- */

/* The well-formed sequences of the Unicode Standard, table 3-7. */
int utf8_step(const unsigned char* held, size_t count, unsigned char byte) {
  if (!count) {
    if (byte < 0x80) return UTF8_WHOLE;
    return byte >= 0xC2 && byte <= 0xF4 ? UTF8_PART : UTF8_WRONG;
  }
  unsigned char first = held[0], low = 0x80, high = 0xBF;
  if (count == 1) {
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  }
  if (byte < low || byte > high) return UTF8_WRONG;
  size_t size = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  return count + 1 == size ? UTF8_WHOLE : UTF8_PART;
}

bool utf8_valid(const char* text, size_t bytes) {
  const unsigned char* data = (const unsigned char*)text;
  size_t count = 0;
  for (size_t i = 0; i < bytes; ++i) {
    int step = utf8_step(data + i - count, count, data[i]);
    if (step == UTF8_WRONG) return false;
    count = step == UTF8_WHOLE ? 0 : count + 1;
  }
  return !count;
}

uint32_t utf8_code(const char* text, size_t* size) {
  const unsigned char* data = (const unsigned char*)text;
  if (data[0] < 0x80) return *size = 1, data[0];
  if (data[0] < 0xE0) return *size = 2, (data[0] & 0x1Fu) << 6 | (data[1] & 0x3Fu);
  if (data[0] < 0xF0)
    return *size = 3, (data[0] & 0xFu) << 12 | (data[1] & 0x3Fu) << 6 | (data[2] & 0x3Fu);
  *size = 4;
  return (data[0] & 7u) << 18 | (data[1] & 0x3Fu) << 12 | (data[2] & 0x3Fu) << 6 |
         (data[3] & 0x3Fu);
}

size_t utf8_encode(uint32_t code, char text[4]) {
  if (code < 0x80) {
    text[0] = (char)code;
    return 1;
  }
  size_t size = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  static const unsigned char marks[] = {0, 0, 0xC0, 0xE0, 0xF0};
  for (size_t i = size; --i; code >>= 6) text[i] = (char)(0x80 | (code & 0x3F));
  text[0] = (char)(marks[size] | code);
  return size;
}

/* ---- classes ---- */

/* Whether a code point is in one of the ranges, which are first and last, ascending. */
static bool in_ranges(const uint32_t (*ranges)[2], size_t count, uint32_t code) {
  size_t low = 0, high = count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (ranges[middle][1] < code)
      low = middle + 1;
    else
      high = middle;
  }
  return low < count && ranges[low][0] <= code;
}

#define IN_RANGES(table, code) in_ranges(table, sizeof(table) / sizeof(table)[0], code)

int character_class(uint32_t code) {
  if (code < 0x80) {
    if ((code | 0x20) - 'a' < 26) return LETTER;
    if (code - '0' < 10) return NUMBER;
    if (code == '\n' || code == '\r') return SPACE | NEWLINE;
    return code == ' ' || code - '\t' < 5 ? SPACE : 0;
  }
  if (IN_RANGES(letter_ranges, code)) return LETTER;
  if (IN_RANGES(number_ranges, code)) return NUMBER;
  return IN_RANGES(space_ranges, code) ? SPACE : 0;
}

/* ---- composition: Unicode Standard Annex 15 ---- */

/* Syllables of Hangul are composed by arithmetic (the Unicode Standard, section 3.12). */
enum { L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11A7, S_BASE = 0xAC00 };
enum { L_COUNT = 19, V_COUNT = 21, T_COUNT = 28, S_COUNT = L_COUNT * V_COUNT * T_COUNT };

/* How marks are ordered behind a letter; 0 for what stays where it is. */
static uint32_t combining_class(uint32_t code) {
  size_t low = 0, high = sizeof combining_ranges / sizeof combining_ranges[0];
  size_t count = high;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (combining_ranges[middle][1] < code)
      low = middle + 1;
    else
      high = middle;
  }
  return low < count && combining_ranges[low][0] <= code ? combining_ranges[low][2] : 0;
}

/* A character's decomposition in a table that is in the order of characters, or NULL. */
static const uint32_t* decomposition(uint32_t code) {
  size_t low = 0, count = sizeof decompositions / sizeof decompositions[0], high = count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (decompositions[middle][0] < code)
      low = middle + 1;
    else
      high = middle;
  }
  return low < count && decompositions[low][0] == code ? decompositions[low] : NULL;
}

static void decompose(uint32_t code, buffer* codes) {
  if (code - S_BASE < S_COUNT) {
    uint32_t index = code - S_BASE, tail = index % T_COUNT;
    buffer_append_u32(codes, L_BASE + index / (V_COUNT * T_COUNT));
    buffer_append_u32(codes, V_BASE + index / T_COUNT % V_COUNT);
    if (tail) buffer_append_u32(codes, T_BASE + tail);
    return;
  }
  const uint32_t* found = code < 0xC0 ? NULL : decomposition(code);
  if (!found) {
    buffer_append_u32(codes, code);
    return;
  }
  decompose(found[1], codes);
  if (found[2]) decompose(found[2], codes);
}

/* The character that two compose to, 0 if they do not. */
static uint32_t compose(uint32_t first, uint32_t second) {
  if (first - L_BASE < L_COUNT && second - V_BASE < V_COUNT)
    return S_BASE + ((first - L_BASE) * V_COUNT + second - V_BASE) * T_COUNT;
  if (first - S_BASE < S_COUNT && (first - S_BASE) % T_COUNT == 0 &&
      second - T_BASE - 1 < T_COUNT - 1)
    return first + second - T_BASE;
  size_t low = 0, count = sizeof compositions / sizeof compositions[0], high = count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    const uint32_t* row = decompositions[compositions[middle]];
    if (row[1] < first || (row[1] == first && row[2] < second))
      low = middle + 1;
    else
      high = middle;
  }
  if (low == count) return 0;
  const uint32_t* row = decompositions[compositions[low]];
  return row[1] == first && row[2] == second ? row[0] : 0;
}

/* Order runs of marks by their class; marks of one class keep their order. */
static void order_marks(uint32_t* codes, size_t count) {
  for (size_t i = 1; i < count; ++i) {
    uint32_t code = codes[i], class = combining_class(code);
    size_t to = i;
    for (; class && to && combining_class(codes[to - 1]) > class; --to) codes[to] = codes[to - 1];
    codes[to] = code;
  }
}

/* Compose each mark with the last letter that no other mark of its class hides; the new count. */
static size_t compose_all(uint32_t* codes, size_t count) {
  size_t kept = 0, starter = SIZE_MAX;
  uint32_t last = 0; /* class of the last mark kept behind the starter */
  for (size_t i = 0; i < count; ++i) {
    uint32_t class = combining_class(codes[i]);
    bool adjacent = starter != SIZE_MAX && starter + 1 == kept;
    if (starter != SIZE_MAX && (adjacent || (class && last < class))) {
      uint32_t composed = compose(codes[starter], codes[i]);
      if (composed) {
        codes[starter] = composed;
        continue;
      }
    }
    if (!class) starter = kept;
    last = class;
    codes[kept++] = codes[i];
  }
  return kept;
}

void normalize_nfc(span text, buffer* composed) {
  bool plain = true; /* nothing below U+0300 is changed: they are composed, and no marks */
  for (size_t i = 0; i < text.size; ++i) plain &= (unsigned char)text.data[i] < 0xCC;
  if (plain) {
    buffer_append(composed, text.data, text.size);
    return;
  }
  buffer codes = {0};
  for (size_t at = 0, size; at < text.size; at += size)
    decompose(utf8_code(text.data + at, &size), &codes);
  if (!codes.failed) {
    uint32_t* list = (uint32_t*)(void*)codes.data;
    size_t count = codes.size / sizeof *list;
    order_marks(list, count);
    count = compose_all(list, count);
    for (size_t i = 0; i < count; ++i) {
      char bytes[4];
      buffer_append(composed, bytes, utf8_encode(list[i], bytes));
    }
  }
  composed->failed |= codes.failed;
  buffer_free(&codes);
}
