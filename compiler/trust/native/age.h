/* Encrypted files in the format of age (age-encryption.org/v1), for recipients of X25519. What is
 * in them is told in compiler/trust/age.py. */
#ifndef EDGEC_AGE_H
#define EDGEC_AGE_H

#include <stddef.h>
#include <stdint.h>

enum {
  AGE_CHUNK_BYTES = 1 << 16,
  AGE_TAG_BYTES = 16,
  AGE_NONCE_BYTES = 16,
  AGE_HEADER_BYTES = 1 << 15,
  AGE_RECIPIENTS = 64,
  AGE_TEXT_BYTES = 128
};

enum { AGE_OK = 0, AGE_DAMAGED = -1, AGE_NOT_FOR_US = -2 };

typedef struct {
  uint8_t secret[32];
  uint8_t recipient[32];
} age_identity;

/* An encrypted file whose header was read. */
typedef struct {
  uint8_t key[32];
  uint64_t start;  /* of the chunks in the file */
  uint64_t bytes;  /* of the content */
  uint64_t chunks; /* at least one */
} age_file;

/* Read "AGE-SECRET-KEY-1…" of so many letters; 0 if it is one. */
int age_read_identity(const char* text, size_t letters, age_identity* identity);

/* The text of an identity's public half. */
void age_recipient_text(const age_identity* identity, char text[AGE_TEXT_BYTES]);

/* Read the header and the nonce, which the first `bytes` of a file hold. */
int age_open(const uint8_t* data, size_t bytes, uint64_t file_bytes,
             const age_identity* identities, size_t count, age_file* file);

/* Where a chunk is in the file, and how long; content is 16 bytes shorter than that. */
uint64_t age_chunk_place(const age_file* file, uint64_t number, size_t* bytes);

/* Decrypt a chunk, perhaps in place. */
int age_decrypt(const age_file* file, uint64_t number, const uint8_t* chunk, uint8_t* content);

#endif
