#include "age.h"

#include <string.h>

#include "monocypher.h"
#include "sha256.h"

#define VERSION "age-encryption.org/v1\n"
#define STANZA "-> X25519 "
#define SECRET_PREFIX "age-secret-key-"
enum { FILE_KEY_BYTES = 16, BODY_BYTES = FILE_KEY_BYTES + AGE_TAG_BYTES };
/* Of 32 bytes in base64 without padding, and in Bech32 with its check. */
enum { BASE64_LETTERS = 43, BECH32_LETTERS = 52, CHECK_LETTERS = 6 };

/* ---- Bech32 (BIP 173) ---- */

static const char bech32_alphabet[] = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";

static uint32_t bech32_step(uint32_t check, uint32_t value) {
  static const uint32_t generator[5] = {0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3};
  uint32_t top = check >> 25;
  check = (check & 0x1ffffff) << 5 ^ value;
  for (int bit = 0; bit < 5; ++bit)
    if (top >> bit & 1) check ^= generator[bit];
  return check;
}

static uint32_t bech32_start(const char* prefix) {
  uint32_t check = 1;
  for (const char* c = prefix; *c; ++c) check = bech32_step(check, (uint32_t)*c >> 5);
  check = bech32_step(check, 0);
  for (const char* c = prefix; *c; ++c) check = bech32_step(check, (uint32_t)*c & 31);
  return check;
}

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c; }

int age_read_identity(const char* text, size_t letters, age_identity* identity) {
  static const char prefix[] = SECRET_PREFIX "1";
  size_t start = sizeof prefix - 1, upper = 0, small = 0, filled = 0;
  if (letters != start + BECH32_LETTERS + CHECK_LETTERS) return -1;
  for (size_t i = 0; i < letters; ++i) {
    upper += text[i] >= 'A' && text[i] <= 'Z';
    small += text[i] >= 'a' && text[i] <= 'z';
    if (i < start && lower(text[i]) != prefix[i]) return -1;
  }
  if (upper && small) return -1;
  uint32_t check = bech32_start(SECRET_PREFIX), held = 0, bits = 0;
  for (size_t i = start; i < letters; ++i) {
    const char* found = text[i] ? strchr(bech32_alphabet, lower(text[i])) : NULL;
    if (!found) return -1;
    uint32_t value = (uint32_t)(found - bech32_alphabet);
    check = bech32_step(check, value);
    if (i >= letters - CHECK_LETTERS) continue;
    held = (held << 5 | value) & 0xfff, bits += 5;
    if (bits < 8) continue;
    bits -= 8;
    identity->secret[filled++] = (uint8_t)(held >> bits);
  }
  if (check != 1 || held & ((1u << bits) - 1)) return -1;
  crypto_x25519_public_key(identity->recipient, identity->secret);
  return 0;
}

void age_recipient_text(const age_identity* identity, char text[AGE_TEXT_BYTES]) {
  uint32_t check = bech32_start("age"), held = 0, bits = 0;
  memcpy(text, "age1", 4);
  text += 4;
  for (int i = 0; i < 32 || bits; ) {
    if (bits < 5 && i < 32) held = held << 8 | identity->recipient[i++], bits += 8;
    else if (bits < 5) held <<= 5 - bits, bits = 5;
    bits -= 5;
    uint32_t value = held >> bits & 31;
    held &= (1u << bits) - 1;
    check = bech32_step(check, value);
    *text++ = bech32_alphabet[value];
  }
  for (int i = 0; i < CHECK_LETTERS; ++i) check = bech32_step(check, 0);
  check ^= 1;
  for (int i = CHECK_LETTERS - 1; i >= 0; --i) *text++ = bech32_alphabet[check >> 5 * i & 31];
  *text = 0;
}

/* ---- the header ---- */

static int base64_digit(uint8_t c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* 32 bytes, written in the one way that there is. */
static int read_base64(const uint8_t* text, uint8_t data[32]) {
  uint32_t held = 0, bits = 0;
  size_t filled = 0;
  for (int i = 0; i < BASE64_LETTERS; ++i) {
    int digit = base64_digit(text[i]);
    if (digit < 0) return -1;
    held = (held << 6 | (uint32_t)digit) & 0xffff, bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    data[filled++] = (uint8_t)(held >> bits);
  }
  return held & ((1u << bits) - 1) ? -1 : 0;
}

/* RFC 8439, as Monocypher's stream begins with it. */
static int open_box(const uint8_t key[32], const uint8_t nonce[12], const uint8_t* box,
                    size_t content_bytes, uint8_t* content) {
  crypto_aead_ctx context;
  crypto_aead_init_ietf(&context, key, nonce);
  int wrong = crypto_aead_read(&context, content, box + content_bytes, NULL, 0, box, content_bytes);
  crypto_wipe(&context, sizeof context);
  return wrong;
}

static int unwrap(const age_identity* identity, const uint8_t share[32],
                  const uint8_t body[BODY_BYTES], uint8_t file_key[FILE_KEY_BYTES]) {
  static const uint8_t nothing[32] = {0};
  uint8_t shared[32], salt[64], key[32];
  crypto_x25519(shared, identity->secret, share);
  memcpy(salt, share, 32);
  memcpy(salt + 32, identity->recipient, 32);
  hkdf_sha256(salt, sizeof salt, shared, sizeof shared, "age-encryption.org/v1/X25519", key);
  int wrong = !crypto_verify32(shared, nothing) || open_box(key, nothing, body, FILE_KEY_BYTES,
                                                            file_key);
  crypto_wipe(shared, sizeof shared);
  crypto_wipe(key, sizeof key);
  return wrong;
}

/* Whether these bytes are here. */
static int starts_with(const uint8_t* data, const uint8_t* end, const char* word) {
  size_t bytes = strlen(word);
  return (size_t)(end - data) >= bytes && !memcmp(data, word, bytes);
}

int age_open(const uint8_t* data, size_t bytes, uint64_t file_bytes,
             const age_identity* identities, size_t count, age_file* file) {
  const uint8_t *next = data, *end = data + (bytes < AGE_HEADER_BYTES ? bytes : AGE_HEADER_BYTES);
  uint8_t file_key[FILE_KEY_BYTES], share[32], body[32], key[32], expected[32], given[32];
  int recipients = 0, opened = 0;
  if (!starts_with(next, end, VERSION)) return AGE_DAMAGED;
  next += sizeof VERSION - 1;
  while (starts_with(next, end, STANZA)) {
    next += sizeof STANZA - 1;
    if (end - next < 2 * (BASE64_LETTERS + 1) || read_base64(next, share) ||
        next[BASE64_LETTERS] != '\n' || read_base64(next + BASE64_LETTERS + 1, body) ||
        next[2 * BASE64_LETTERS + 1] != '\n' || ++recipients > AGE_RECIPIENTS)
      return AGE_DAMAGED;
    next += 2 * (BASE64_LETTERS + 1);
    for (size_t i = 0; !opened && i < count; ++i)
      opened = !unwrap(&identities[i], share, body, file_key);
  }
  if (!recipients || end - next < 4 + BASE64_LETTERS + 1 || memcmp(next, "--- ", 4) ||
      read_base64(next + 4, given) || next[4 + BASE64_LETTERS] != '\n')
    return AGE_DAMAGED;
  if (!opened) return AGE_NOT_FOR_US;
  hkdf_sha256(NULL, 0, file_key, sizeof file_key, "header", key);
  hmac_sha256(key, sizeof key, data, (size_t)(next - data) + 3, expected);
  next += 4 + BASE64_LETTERS + 1;
  int wrong = crypto_verify32(expected, given) ||
              (size_t)(data + bytes - next) < AGE_NONCE_BYTES;
  if (!wrong) hkdf_sha256(next, AGE_NONCE_BYTES, file_key, sizeof file_key, "payload", file->key);
  crypto_wipe(file_key, sizeof file_key);
  crypto_wipe(key, sizeof key);
  if (wrong) return AGE_DAMAGED;
  file->start = (uint64_t)(next - data) + AGE_NONCE_BYTES;
  if (file_bytes < file->start + AGE_TAG_BYTES) return AGE_DAMAGED;
  uint64_t sealed = file_bytes - file->start;
  const uint64_t whole = AGE_CHUNK_BYTES + AGE_TAG_BYTES;
  file->chunks = (sealed + whole - 1) / whole;
  /* A last chunk without content is that of an empty file. */
  uint64_t last = sealed - (file->chunks - 1) * whole;
  if (last < AGE_TAG_BYTES || (last == AGE_TAG_BYTES && file->chunks > 1)) return AGE_DAMAGED;
  file->bytes = sealed - file->chunks * AGE_TAG_BYTES;
  return AGE_OK;
}

/* ---- the content ---- */

uint64_t age_chunk_place(const age_file* file, uint64_t number, size_t* bytes) {
  uint64_t begin = number * AGE_CHUNK_BYTES, left = file->bytes - begin;
  *bytes = (size_t)(left < AGE_CHUNK_BYTES ? left : AGE_CHUNK_BYTES) + AGE_TAG_BYTES;
  return file->start + number * (AGE_CHUNK_BYTES + AGE_TAG_BYTES);
}

int age_decrypt(const age_file* file, uint64_t number, const uint8_t* chunk, uint8_t* content) {
  uint8_t nonce[12] = {0};
  size_t bytes;
  age_chunk_place(file, number, &bytes);
  for (int i = 0; i < 8; ++i) nonce[3 + i] = (uint8_t)(number >> (56 - 8 * i));
  nonce[11] = number + 1 == file->chunks;
  return open_box(file->key, nonce, chunk, bytes - AGE_TAG_BYTES, content) ? AGE_DAMAGED : AGE_OK;
}
