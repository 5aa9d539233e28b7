/* SHA-256 (FIPS 180-4), HMAC (RFC 2104) and HKDF (RFC 5869) on it. */
#ifndef EDGEC_SHA256_H
#define EDGEC_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
  uint32_t state[8];
  uint64_t bytes;
  uint8_t block[64];
} sha256;

void sha256_init(sha256* hash);
void sha256_update(sha256* hash, const void* data, size_t bytes);
void sha256_final(sha256* hash, uint8_t digest[32]);

void hmac_sha256(const void* key, size_t key_bytes, const void* data, size_t bytes,
                 uint8_t mac[32]);
/* 32 bytes of key; `info` is text. */
void hkdf_sha256(const void* salt, size_t salt_bytes, const void* secret, size_t secret_bytes,
                 const char* info, uint8_t key[32]);

#endif
