#include "sha256.h"

#include <string.h>

#include "sha256_blocks.h"

void sha256_init(sha256* hash) {
  static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  memcpy(hash->state, start, sizeof start);
  hash->bytes = 0;
}

void sha256_update(sha256* hash, const void* data, size_t bytes) {
  const uint8_t* next = data;
  size_t filled = hash->bytes % 64;
  hash->bytes += bytes;
  if (filled) {
    size_t room = 64 - filled, taken = bytes < room ? bytes : room;
    memcpy(hash->block + filled, next, taken);
    next += taken, bytes -= taken;
    if (taken < room) return;
    sha256_blocks(hash->state, hash->block, 1);
  }
  if (bytes / 64) sha256_blocks(hash->state, next, bytes / 64);
  if (bytes % 64) memcpy(hash->block, next + bytes / 64 * 64, bytes % 64);
}

void sha256_final(sha256* hash, uint8_t digest[32]) {
  uint64_t bits = hash->bytes * 8;
  uint8_t end[72] = {0x80};
  size_t padding = 64 - (hash->bytes + 8) % 64;
  for (int i = 0; i < 8; ++i) end[padding + i] = (uint8_t)(bits >> (56 - 8 * i));
  sha256_update(hash, end, padding + 8);
  for (int i = 0; i < 32; ++i) digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}

static void hmac_start(sha256* inner, sha256* outer, const void* key, size_t key_bytes) {
  uint8_t block[64] = {0}, pad[64];
  if (key_bytes > sizeof block) {
    sha256_init(inner);
    sha256_update(inner, key, key_bytes);
    sha256_final(inner, block);
  } else if (key_bytes) {
    memcpy(block, key, key_bytes);
  }
  for (int i = 0; i < 64; ++i) pad[i] = block[i] ^ 0x36;
  sha256_init(inner);
  sha256_update(inner, pad, sizeof pad);
  for (int i = 0; i < 64; ++i) pad[i] = block[i] ^ 0x5c;
  sha256_init(outer);
  sha256_update(outer, pad, sizeof pad);
}

void hmac_sha256(const void* key, size_t key_bytes, const void* data, size_t bytes,
                 uint8_t mac[32]) {
  sha256 inner, outer;
  hmac_start(&inner, &outer, key, key_bytes);
  sha256_update(&inner, data, bytes);
  sha256_final(&inner, mac);
  sha256_update(&outer, mac, 32);
  sha256_final(&outer, mac);
}

void hkdf_sha256(const void* salt, size_t salt_bytes, const void* secret, size_t secret_bytes,
                 const char* info, uint8_t key[32]) {
  static const uint8_t first = 1;
  uint8_t extracted[32];
  sha256 inner, outer;
  hmac_sha256(salt, salt_bytes, secret, secret_bytes, extracted);
  hmac_start(&inner, &outer, extracted, sizeof extracted);
  sha256_update(&inner, info, strlen(info));
  sha256_update(&inner, &first, 1);
  sha256_final(&inner, key);
  sha256_update(&outer, key, 32);
  sha256_final(&outer, key);
}
