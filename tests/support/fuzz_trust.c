/* Damages signatures, policies, identities and encrypted files at random, and reads them.
 *
 *     fuzz_trust FOLDER SEED CASES
 *
 * FOLDER holds signature.txt, trust.toml, board.identity, x.age and plain, its content. A damaged
 * signature or encrypted file must be refused; what is read lies in memory of exactly its size, so
 * that the address sanitizer sees every byte too far. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "age.h"
#include "identity.h"
#include "policy.h"
#include "signature.h"

typedef struct {
  uint8_t* data;
  size_t bytes;
} blob;

static uint64_t state;

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t random_number(uint64_t below) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (z ^ z >> 31) % below;
}

static blob read_blob(const char* folder, const char* name) {
  char path[TRUST_PATH_BYTES];
  blob result;
  trust_join(folder, name, path);
  result.data = (uint8_t*)trust_read_file(path, 1 << 24, &result.bytes);
  if (!result.data) exit(2);
  return result;
}

static void replace(blob* text, size_t place, size_t removed, const uint8_t* data, size_t bytes) {
  uint8_t* longer = malloc(text->bytes - removed + bytes + 1);
  memcpy(longer, text->data, place);
  if (bytes) memcpy(longer + place, data, bytes);
  memcpy(longer + place + bytes, text->data + place + removed, text->bytes - place - removed);
  free(text->data);
  text->data = longer;
  text->bytes += bytes - removed;
}

static size_t any_place(const blob* text) { return (size_t)random_number(text->bytes + 1); }

static size_t any_length(const blob* text, size_t place) {
  size_t most = text->bytes - place < 64 ? text->bytes - place : 64;
  return (size_t)random_number(most + 1);
}

/* A change: bits, bytes, a cut, a part that comes twice, or words that the formats know. */
static void change_once(blob* text) {
  static const char* const words[] = {
      "\n",  "\r\n", " ",  "0",          "99999999999999999999", "sha256 ",    "ed25519 ", "-> X25519 ",
      "---", "/",    "..", "[trusted]\n", "[revoked]\n",          "ed25519:", "\"",       "AGE-SECRET-KEY-1",
      "=",   "#",    "\xff", "age-encryption.org/v1\n"};
  size_t place = any_place(text), length = any_length(text, place);
  uint8_t byte = (uint8_t)random_number(256), copy[64];
  const char* word = words[random_number(sizeof words / sizeof *words)];
  switch (random_number(7)) {
    case 0:
      if (place < text->bytes) text->data[place] ^= (uint8_t)(1 << random_number(8));
      break;
    case 1: replace(text, place, length ? 1 : 0, &byte, 1); break;
    case 2: replace(text, place, length, NULL, 0); break;
    case 3: replace(text, place, text->bytes - place, NULL, 0); break;
    case 4:
      memcpy(copy, text->data + place, length);
      replace(text, any_place(text), 0, copy, length);
      break;
    case 5: replace(text, place, 0, (const uint8_t*)word, strlen(word)); break;
    default: replace(text, place, length, (const uint8_t*)word, strlen(word)); break;
  }
}

/* A damaged copy, with a zero byte behind it if it is text. */
static blob changed(const blob* original, int is_text) {
  blob copy = {malloc(original->bytes + 1), original->bytes};
  memcpy(copy.data, original->data, original->bytes);
  for (uint64_t i = 1 + random_number(3); i; --i) change_once(&copy);
  blob exact = {malloc(copy.bytes + (is_text ? 1 : 0)), copy.bytes};
  if (copy.bytes) memcpy(exact.data, copy.data, copy.bytes);
  if (is_text) exact.data[exact.bytes] = 0;
  free(copy.data);
  return exact;
}

static int is_same(const blob* left, const blob* right) {
  return left->bytes == right->bytes && !memcmp(left->data, right->data, left->bytes);
}

static void complain(const char* what) {
  printf("%s was accepted\n", what);
  exit(1);
}

static void try_signature(const blob* original) {
  trust_message message;
  signature result;
  blob text = changed(original, 1);
  int same = is_same(&text, original);
  if (!signature_parse((char*)text.data, text.bytes, "x", &result, &message) && !same)
    complain("a damaged signature");
  signature_free(&result);
}

static void try_policy(const blob* original) {
  static policy result;
  trust_message message;
  blob text = changed(original, 1);
  policy_parse((char*)text.data, text.bytes, "x", &result, &message);
  free(text.data);
}

static void try_identity(const blob* original, identity_list* identities) {
  identity_list result;
  trust_message message;
  char names[AGE_TEXT_BYTES];
  blob text = changed(original, 1);
  if (!identity_parse((char*)text.data, "x", &result, &message)) {
    age_recipient_text(&result.keys[0], names);
    /* Comments may change, and lines of other keys come from nowhere. */
    for (size_t i = 0; i < result.count; ++i)
      if (memcmp(&result.keys[i], &identities->keys[0], sizeof(age_identity)))
        complain("a damaged identity");
  }
  free(text.data);
}

/* Whether all of a file can be decrypted, to what was encrypted. */
static int decrypts(const blob* file, const blob* plain, const identity_list* identities) {
  age_file opened;
  if (age_open(file->data, file->bytes, file->bytes, identities->keys, identities->count, &opened))
    return 0;
  for (uint64_t i = 0; i < opened.chunks; ++i) {
    size_t bytes;
    uint64_t place = age_chunk_place(&opened, i, &bytes);
    uint8_t* content = malloc(bytes - AGE_TAG_BYTES + 1);
    int wrong = age_decrypt(&opened, i, file->data + place, content);
    uint64_t start = i * AGE_CHUNK_BYTES, end = start + bytes - AGE_TAG_BYTES;
    if (!wrong && (end > plain->bytes || memcmp(content, plain->data + start, end - start)))
      complain("other content");
    free(content);
    if (wrong) return 0;
  }
  return 1;
}

static void try_file(const blob* original, const blob* plain, const identity_list* identities) {
  blob file = changed(original, 0);
  if (decrypts(&file, plain, identities) && !is_same(&file, original))
    complain("a damaged encrypted file");
  free(file.data);
}

int main(int count, char** arguments) {
  if (count != 4) return 2;
  const char* folder = arguments[1];
  blob signed_text = read_blob(folder, SIGNATURE_FILE), rules = read_blob(folder, "trust.toml");
  blob secret = read_blob(folder, "board.identity"), file = read_blob(folder, "x.age");
  blob plain = read_blob(folder, "plain");
  identity_list identities;
  trust_message message;
  signature good;
  state = strtoull(arguments[2], NULL, 10);
  /* The originals are right. */
  if (identity_parse((char*)secret.data, "x", &identities, &message)) return 2;
  if (!decrypts(&file, &plain, &identities)) return 2;
  blob copy = {malloc(signed_text.bytes + 1), signed_text.bytes};
  memcpy(copy.data, signed_text.data, signed_text.bytes + 1);
  if (signature_parse((char*)copy.data, copy.bytes, "x", &good, &message)) return 2;
  signature_free(&good);
  for (long cases = atol(arguments[3]); cases > 0; --cases) switch (cases % 4) {
      case 0: try_signature(&signed_text); break;
      case 1: try_policy(&rules); break;
      case 2: try_identity(&secret, &identities); break;
      default: try_file(&file, &plain, &identities);
    }
  free(signed_text.data), free(rules.data), free(secret.data), free(file.data), free(plain.data);
  return 0;
}
