/* The Noise protocol framework (revision 34, https://noiseprotocol.org/noise.html), of which this is
 * Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b: both sides know one key of 32 bytes and show each other that
 * they do, with fresh keys for each connection. The first message of who does not is refused. */
#ifndef EDGEC_NOISE_H
#define EDGEC_NOISE_H

#include <stddef.h>
#include <stdint.h>

enum {
  NOISE_KEY_BYTES = 32,
  NOISE_HASH_BYTES = 64,
  NOISE_TAG_BYTES = 16,
  NOISE_HANDSHAKE_BYTES = 48, /* of each of the two messages: a public key and a tag */
  NOISE_MOST_BYTES = 65535    /* of a sealed message */
};

/* One side of a handshake. */
typedef struct {
  uint8_t chain[NOISE_HASH_BYTES], hash[NOISE_HASH_BYTES]; /* the specification's ck and h */
  uint8_t key[NOISE_KEY_BYTES];
  uint8_t secret[NOISE_KEY_BYTES]; /* of this connection only */
} noise_handshake;

/* What a handshake gives: messages are sealed and opened in order. */
typedef struct {
  uint8_t sending_key[NOISE_KEY_BYTES], receiving_key[NOISE_KEY_BYTES];
  uint64_t sent, received;
} noise_channel;

/* The first message, of who opens the connection, and the end of its handshake by the answer. Gives 0,
 * or -1 if there are no random numbers, or the answer is of someone who does not know the key. */
int noise_begin(noise_handshake* handshake, const uint8_t key[NOISE_KEY_BYTES],
                uint8_t message[NOISE_HANDSHAKE_BYTES]);
int noise_finish(noise_handshake* handshake, const uint8_t answer[NOISE_HANDSHAKE_BYTES],
                 noise_channel* channel);

/* Answer a first message. Gives 0, or -1 if its sender does not know the key. */
int noise_answer(const uint8_t key[NOISE_KEY_BYTES], const uint8_t message[NOISE_HANDSHAKE_BYTES],
                 uint8_t answer[NOISE_HANDSHAKE_BYTES], noise_channel* channel);

/* Seal a message of at most NOISE_MOST_BYTES - NOISE_TAG_BYTES bytes; `sealed` may be `plain`, and has
 * room for the tag. */
void noise_seal(noise_channel* channel, const uint8_t* plain, size_t bytes, uint8_t* sealed);

/* Open one of `bytes` bytes with its tag, in place. Gives 0, or -1 if it was changed. */
int noise_open(noise_channel* channel, uint8_t* sealed, size_t bytes);

#endif
