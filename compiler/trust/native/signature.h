/* A bundle's signature.txt: digests of its files, and the keys that signed them. The format is told
 * in compiler/trust/signature.py. */
#ifndef EDGEC_SIGNATURE_H
#define EDGEC_SIGNATURE_H

#include "files.h"
#include "sha256.h"

#define SIGNATURE_FILE "signature.txt"
enum { SIGNATURE_BYTES = 1 << 20, SIGNATURE_KEYS = 16, SIGNATURE_PATH_BYTES = 255 };

typedef struct {
  const char* path;
  uint64_t bytes;
  uint8_t digest[32];
} signed_file;

typedef struct {
  char* text; /* NULL if the bundle is not signed */
  signed_file* files;
  size_t file_count;
  uint8_t keys[SIGNATURE_KEYS][32];
  size_t key_count;
} signature;

/* Read and verify the content of signature.txt, which is changed and belongs to the result. A zero
 * byte is behind it. */
int signature_parse(char* text, size_t bytes, const char* bundle, signature* result,
                    trust_message* message);

/* Read a bundle's signature, if it has one. */
int signature_read(const char* bundle, signature* result, trust_message* message);

/* Compare all files of a bundle with its signature, but for the content of one, which the caller
 * compares; NULL: no exception. */
int signature_compare(const char* bundle, const signature* signed_by, const char* but,
                      trust_message* message);

/* The file of this path; NULL if none is signed. */
const signed_file* signature_find(const signature* signed_by, const char* path);

/* The first key, for messages. */
void signature_key_text(const uint8_t key[32], char text[73]);

void signature_free(signature* result);

#endif
