/* Damages tokenizer.bin in many ways, and uses what opens: to be built with AddressSanitizer.
 *
 *     fuzz_tokenizer COUNT FILE
 *
 * Prints how many opened and how many were refused. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generation.h"

#define HEAD (8 + 17 * 8) /* magic and table of sections */

static uint64_t state = 88172645463325252u;

static size_t below(size_t limit) { /* xorshift64 (Marsaglia 2003) */
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (size_t)(state >> 11) % limit;
}

static void damage(char* data, size_t bytes) {
  size_t kind = below(8);
  size_t place = kind == 0 ? 8 + below(HEAD - 8) : HEAD + below(bytes - HEAD);
  if (kind < 3) place = HEAD + below(bytes - HEAD < 300 ? bytes - HEAD : 300);
  uint32_t numbers[] = {UINT32_MAX, (uint32_t)below(400), (uint32_t)(bytes - below(16))};
  if (kind < 5)
    data[place] ^= (char)(1 << below(8));
  else if (place / 4 * 4 + 4 <= bytes)
    memcpy(data + place / 4 * 4, &numbers[kind - 5], 4);
}

static void use(const edgec_tokenizer* tokenizer) {
  static const char* const texts[] = {
      "Hello  world, it's 1234 <s> <b> \xc3\xa9\n\n x", "",
      " \xe2\x96\x81\xe2\x96\x81 q\xcc\x87\xcc\xa3 \xf0\x9f\x98\x80[X]  y", "f(x):\r\n    return\t1"};
  for (int t = 0; t < 4; ++t) {
    /* Memory of its own, so that a byte read behind it is noticed. */
    size_t bytes = strlen(texts[t]);
    char* text = malloc(bytes ? bytes : 1);
    memcpy(text, texts[t], bytes);
    int32_t* ids;
    const char* given;
    int64_t count = edgec_encode(tokenizer, text, bytes, 1, &ids);
    edgec_stream* stream = edgec_stream_open(tokenizer, t & 1, t & 2);
    edgec_stream_stop_at(stream, "wor", 3);
    for (int64_t i = 0; i < count; ++i) edgec_stream_put(stream, ids[i], &given);
    for (int i = 0; i < 20; ++i) edgec_stream_put(stream, (int32_t)below(1000) - 10, &given);
    edgec_stream_end(stream, &given);
    edgec_stream_close(stream);
    edgec_free(ids);
    free(text);
  }
  const char *roles[] = {"system", "user"}, *contents[] = {"  a ", "b\n"};
  char* chat;
  edgec_chat_text(tokenizer, roles, contents, 2, &chat);
  edgec_free(chat);
}

int main(int count, char** arguments) {
  static char whole[1 << 20];
  if (count != 3) return 2;
  FILE* file = fopen(arguments[2], "rb");
  size_t all = file ? fread(whole, 1, sizeof whole, file) : 0;
  if (all <= HEAD || fclose(file)) return 2;
  int opened = 0, refused = 0;
  for (int i = 0; i < atoi(arguments[1]); ++i) {
    char message[256];
    void* data;
    size_t bytes = below(16) ? all : HEAD + 1 + below(all - HEAD - 1);
    if (posix_memalign(&data, 8, bytes)) return 2;
    memcpy(data, whole, bytes);
    for (size_t n = below(4); n; --n) damage(data, bytes);
    edgec_tokenizer* tokenizer = edgec_tokenizer_open(data, bytes, message, sizeof message);
    if (tokenizer) use(tokenizer);
    edgec_tokenizer_close(tokenizer);
    *(tokenizer ? &opened : &refused) += 1;
    free(data);
  }
  printf("%d %d\n", opened, refused);
  return 0;
}
