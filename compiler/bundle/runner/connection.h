/* Connections between the machines of a split model: frames over TCP, sealed by Noise (noise.h) if there
 * is a key. What is read has a stated length, and goes to memory that was there before. */
#ifndef EDGEC_CONNECTION_H
#define EDGEC_CONNECTION_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "noise.h"

/* Before each payload stand 16 bytes, little-endian as everything here. */
typedef struct {
  uint8_t type, flags;
  uint8_t program, value; /* of DATA: which program of the stage, and which of its inputs */
  uint32_t bytes;         /* of the payload */
  uint64_t request;
} frame;

enum {
  FRAME_HELLO = 1, /* who connects, and the stage's answer to a host */
  FRAME_ROUTES,    /* host to stage: where values come from and go to */
  FRAME_READY,     /* the answer: connected with all of them */
  FRAME_DATA,      /* a value of a request */
  FRAME_CREDIT,    /* consumer to producer: requests below this number may be sent */
  FRAME_DONE,      /* stage to host: a request is computed; when */
  FRAME_PING,      /* nothing else was sent for a while */
  FRAME_PONG,      /* stage to host: the answer, with the stage's clock */
  FRAME_ERROR      /* stage to host: why the session ends; `value` is the stage that is to blame */
};
enum { FRAME_BYTES = 16, FRAME_BEGINS = 1 /* flag of DATA: the stream begins anew, with no state */ };

typedef struct {
  int socket, secure;
  int timeout_ms;     /* without a byte for so long the other side is taken for dead */
  _Atomic(const char*) broken; /* why it is, else NULL */
  int unsendable;              /* what was sent last is not whole; guarded by `sending` */
  char peer[64];      /* its address */
  pthread_mutex_t sending;
  uint64_t last_sent_ms;
  noise_channel channel;
  size_t in_place, in_end, out_end;
  uint8_t in[NOISE_MOST_BYTES], out[2 + NOISE_MOST_BYTES];
} connection;

uint64_t monotonic_ns(void);

/* HOST:PORT as an address; 0 on success. Whether it is one of this machine's own. */
struct sockaddr_storage;
int address_of(const char* text, struct sockaddr_storage* address, unsigned* bytes);
int is_loopback(const struct sockaddr_storage* address);
void address_text(const struct sockaddr_storage* address, char text[64]);

/* Take a connected socket. Until the other side has shown that it knows the key (NULL: there is none)
 * nothing is read but what shows it. 0 on success; else `broken` says why. */
int connection_accept(connection* link, int socket, const uint8_t* key, int timeout_ms);
int connection_open(connection* link, const char* address, const uint8_t* key, int timeout_ms);
void connection_close(connection* link);
void connection_timeout(connection* link, int timeout_ms);

/* Read exactly so many bytes. 0 on success. */
int connection_read(connection* link, void* data, size_t bytes);
int connection_read_frame(connection* link, frame* header);

/* Send a frame. Threads take turns. 0 on success. */
int connection_send(connection* link, const frame* header, const void* payload);

/* Send PING unless something was sent within this time, or is being sent. Never waits. */
void connection_ping(connection* link, uint64_t within_ms);

#endif
