/* Compare the CPU's own instructions for SHA-256 with plain C, then print a digest of stdin. */
#include <stdio.h>
#include <string.h>

#include "sha256.h"
#include "sha256_blocks.h"

static uint8_t data[1 << 16];

int main(void) {
  size_t bytes = fread(data, 1, sizeof data, stdin);
  sha256_compressor* native = sha256_blocks_native();
  for (size_t blocks = 0; native && 64 * blocks + 3 <= bytes; blocks = 2 * blocks + 1) {
    uint32_t expected[8] = {1, 2, 3, 4, 5, 6, 7, 8}, found[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    sha256_blocks_portable(expected, data + 3, blocks);
    native(found, data + 3, blocks);
    if (memcmp(expected, found, sizeof found)) return 1;
  }
  /* In parts of other lengths than a block's. */
  sha256 hash;
  uint8_t digest[32];
  sha256_init(&hash);
  for (size_t done = 0, part = 1; done < bytes; done += part, part = part * 3 % 197 + 1) {
    if (part > bytes - done) part = bytes - done;
    sha256_update(&hash, data + done, part);
  }
  sha256_final(&hash, digest);
  for (int i = 0; i < 32; ++i) printf("%02x", digest[i]);
  return 0;
}
