#include "sha256.h"

#include <string.h>

static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

static void compress(uint32_t state[8], const uint8_t* block) {
  uint32_t w[64], a = state[0], b = state[1], c = state[2], d = state[3];
  uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
  for (int i = 0; i < 16; ++i, block += 4)
    w[i] = (uint32_t)block[0] << 24 | (uint32_t)block[1] << 16 | (uint32_t)block[2] << 8 | block[3];
  for (int i = 16; i < 64; ++i) {
    uint32_t low = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
    uint32_t high = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + low + w[i - 7] + high;
  }
  for (int i = 0; i < 64; ++i) {
    uint32_t one = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) +
                   constants[i] + w[i];
    uint32_t two = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + one;
    d = c, c = b, b = a, a = one + two;
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d;
  state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

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
    compress(hash->state, hash->block);
  }
  for (; bytes >= 64; next += 64, bytes -= 64) compress(hash->state, next);
  if (bytes) memcpy(hash->block, next, bytes);
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
