#include "noise.h"

#include <string.h>
#include <sys/random.h>

#include "monocypher.h"

static const char protocol[] = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b";
/* Both sides hash it, so that no other protocol with this key is taken for this one. */
static const char prologue[] = "edgec stage 1";

enum { BLOCK_BYTES = 128 /* of BLAKE2b */ };

/* HMAC (RFC 2104) with BLAKE2b of one or two parts; keys are of NOISE_HASH_BYTES. */
static void hmac(const uint8_t* key, const uint8_t* data, size_t bytes, const uint8_t* more,
                 size_t more_bytes, uint8_t* code) {
  uint8_t block[BLOCK_BYTES] = {0}, inner[NOISE_HASH_BYTES];
  crypto_blake2b_ctx hash;
  memcpy(block, key, NOISE_HASH_BYTES);
  for (int i = 0; i < BLOCK_BYTES; ++i) block[i] ^= 0x36;
  crypto_blake2b_init(&hash, NOISE_HASH_BYTES);
  crypto_blake2b_update(&hash, block, BLOCK_BYTES);
  crypto_blake2b_update(&hash, data, bytes);
  crypto_blake2b_update(&hash, more, more_bytes);
  crypto_blake2b_final(&hash, inner);
  for (int i = 0; i < BLOCK_BYTES; ++i) block[i] ^= 0x36 ^ 0x5c;
  crypto_blake2b_init(&hash, NOISE_HASH_BYTES);
  crypto_blake2b_update(&hash, block, BLOCK_BYTES);
  crypto_blake2b_update(&hash, inner, NOISE_HASH_BYTES);
  crypto_blake2b_final(&hash, code);
  crypto_wipe(block, sizeof block);
  crypto_wipe(inner, sizeof inner);
}

/* HKDF of section 4.3: two or three outputs. */
static void derive(const uint8_t* chain, const uint8_t* input, size_t bytes, int outputs,
                   uint8_t out[3][NOISE_HASH_BYTES]) {
  uint8_t secret[NOISE_HASH_BYTES];
  hmac(chain, input, bytes, NULL, 0, secret);
  for (uint8_t i = 0; i < outputs; ++i) {
    uint8_t number = i + 1;
    hmac(secret, i ? out[i - 1] : NULL, i ? NOISE_HASH_BYTES : 0, &number, 1, out[i]);
  }
  crypto_wipe(secret, sizeof secret);
}

static void mix_hash(noise_handshake* handshake, const void* data, size_t bytes) {
  crypto_blake2b_ctx hash;
  crypto_blake2b_init(&hash, NOISE_HASH_BYTES);
  crypto_blake2b_update(&hash, handshake->hash, NOISE_HASH_BYTES);
  crypto_blake2b_update(&hash, data, bytes);
  crypto_blake2b_final(&hash, handshake->hash);
}

static void mix_key(noise_handshake* handshake, const uint8_t* input, int and_hash) {
  uint8_t out[3][NOISE_HASH_BYTES];
  derive(handshake->chain, input, 32, and_hash ? 3 : 2, out);
  memcpy(handshake->chain, out[0], NOISE_HASH_BYTES);
  if (and_hash) mix_hash(handshake, out[1], NOISE_HASH_BYTES);
  memcpy(handshake->key, out[and_hash ? 2 : 1], NOISE_KEY_BYTES);
  crypto_wipe(out, sizeof out);
}

static void start(noise_handshake* handshake, const uint8_t* key) {
  memset(handshake, 0, sizeof *handshake);
  memcpy(handshake->hash, protocol, strlen(protocol));
  memcpy(handshake->chain, handshake->hash, NOISE_HASH_BYTES);
  mix_hash(handshake, prologue, strlen(prologue));
  mix_key(handshake, key, 1);
}

/* The nonce of section 12.3: four zeros and a counter. */
static void seal(const uint8_t* key, uint64_t number, const uint8_t* hash, const uint8_t* plain,
                 size_t bytes, uint8_t* sealed) {
  uint8_t nonce[12] = {0};
  crypto_aead_ctx context;
  for (int i = 0; i < 8; ++i) nonce[4 + i] = (uint8_t)(number >> 8 * i);
  crypto_aead_init_ietf(&context, key, nonce);
  crypto_aead_write(&context, sealed, sealed + bytes, hash, hash ? NOISE_HASH_BYTES : 0, plain, bytes);
  crypto_wipe(&context, sizeof context);
}

static int unseal(const uint8_t* key, uint64_t number, const uint8_t* hash, uint8_t* sealed,
                  size_t bytes) {
  uint8_t nonce[12] = {0};
  crypto_aead_ctx context;
  for (int i = 0; i < 8; ++i) nonce[4 + i] = (uint8_t)(number >> 8 * i);
  crypto_aead_init_ietf(&context, key, nonce);
  int wrong = crypto_aead_read(&context, sealed, sealed + bytes, hash, hash ? NOISE_HASH_BYTES : 0,
                               sealed, bytes);
  crypto_wipe(&context, sizeof context);
  return wrong ? -1 : 0;
}

/* Token e: a fresh public key. */
static int write_public_key(noise_handshake* handshake, uint8_t* message) {
  if (getrandom(handshake->secret, NOISE_KEY_BYTES, 0) != NOISE_KEY_BYTES) return -1;
  crypto_x25519_public_key(message, handshake->secret);
  mix_hash(handshake, message, 32);
  mix_key(handshake, message, 0);
  return 0;
}

static void read_public_key(noise_handshake* handshake, const uint8_t* message) {
  mix_hash(handshake, message, 32);
  mix_key(handshake, message, 0);
}

/* Token ee: what both public keys give. */
static void mix_shared(noise_handshake* handshake, const uint8_t* other) {
  uint8_t shared[32];
  crypto_x25519(shared, handshake->secret, other);
  mix_key(handshake, shared, 0);
  crypto_wipe(shared, sizeof shared);
  crypto_wipe(handshake->secret, sizeof handshake->secret);
}

/* The payload of a handshake message is empty: what there is of it is the tag. */
static void write_tag(noise_handshake* handshake, uint8_t* tag) {
  seal(handshake->key, 0, handshake->hash, NULL, 0, tag);
  mix_hash(handshake, tag, NOISE_TAG_BYTES);
}

static int read_tag(noise_handshake* handshake, const uint8_t* tag) {
  uint8_t copy[NOISE_TAG_BYTES];
  memcpy(copy, tag, NOISE_TAG_BYTES);
  if (unseal(handshake->key, 0, handshake->hash, copy, 0)) return -1;
  mix_hash(handshake, tag, NOISE_TAG_BYTES);
  return 0;
}

static void split(noise_handshake* handshake, int began, noise_channel* channel) {
  uint8_t out[3][NOISE_HASH_BYTES];
  derive(handshake->chain, NULL, 0, 2, out);
  memcpy(channel->sending_key, out[began ? 0 : 1], NOISE_KEY_BYTES);
  memcpy(channel->receiving_key, out[began ? 1 : 0], NOISE_KEY_BYTES);
  channel->sent = channel->received = 0;
  crypto_wipe(out, sizeof out);
  crypto_wipe(handshake, sizeof *handshake);
}

int noise_begin(noise_handshake* handshake, const uint8_t key[NOISE_KEY_BYTES],
                uint8_t message[NOISE_HANDSHAKE_BYTES]) {
  start(handshake, key);
  if (write_public_key(handshake, message)) return -1;
  write_tag(handshake, message + 32);
  return 0;
}

int noise_finish(noise_handshake* handshake, const uint8_t answer[NOISE_HANDSHAKE_BYTES],
                 noise_channel* channel) {
  read_public_key(handshake, answer);
  mix_shared(handshake, answer);
  if (read_tag(handshake, answer + 32)) return -1;
  split(handshake, 1, channel);
  return 0;
}

int noise_answer(const uint8_t key[NOISE_KEY_BYTES], const uint8_t message[NOISE_HANDSHAKE_BYTES],
                 uint8_t answer[NOISE_HANDSHAKE_BYTES], noise_channel* channel) {
  noise_handshake handshake;
  start(&handshake, key);
  read_public_key(&handshake, message);
  if (read_tag(&handshake, message + 32) || write_public_key(&handshake, answer)) return -1;
  mix_shared(&handshake, message);
  write_tag(&handshake, answer + 32);
  split(&handshake, 0, channel);
  return 0;
}

void noise_seal(noise_channel* channel, const uint8_t* plain, size_t bytes, uint8_t* sealed) {
  seal(channel->sending_key, channel->sent++, NULL, plain, bytes, sealed);
}

int noise_open(noise_channel* channel, uint8_t* sealed, size_t bytes) {
  if (bytes < NOISE_TAG_BYTES) return -1;
  return unseal(channel->receiving_key, channel->received++, NULL, sealed, bytes - NOISE_TAG_BYTES);
}
