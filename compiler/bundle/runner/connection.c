#define _GNU_SOURCE
#include "connection.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <arpa/inet.h>

/* What a connection begins with. */
enum { PREFACE_BYTES = 8 };
static const char plain_preface[] = "edgec-p1", sealed_preface[] = "edgec-s1";
enum { SEALED_PLAIN_BYTES = NOISE_MOST_BYTES - NOISE_TAG_BYTES, LARGE_BYTES = 16384 };

uint64_t monotonic_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t now_ms(void) { return monotonic_ns() / 1000000; }

/* The first reason stays. */
static int break_with(connection* link, const char* why) {
  const char* none = NULL;
  atomic_compare_exchange_strong(&link->broken, &none, why);
  return -1;
}

static int is_silence(void) { return errno == EAGAIN || errno == EWOULDBLOCK; }

/* ---- addresses ---- */

int address_of(const char* text, struct sockaddr_storage* address, unsigned* bytes) {
  char host[256];
  const char* colon = strrchr(text, ':');
  if (!colon || colon == text || !colon[1] || (size_t)(colon - text) >= sizeof host) return -1;
  size_t length = (size_t)(colon - text);
  memcpy(host, text, length);
  host[length] = 0;
  if (host[0] == '[' && host[length - 1] == ']') {
    memmove(host, host + 1, length - 2);
    host[length - 2] = 0;
  }
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
  if (getaddrinfo(host, colon + 1, &hints, &found)) return -1;
  memcpy(address, found->ai_addr, found->ai_addrlen);
  *bytes = found->ai_addrlen;
  freeaddrinfo(found);
  return 0;
}

int is_loopback(const struct sockaddr_storage* address) {
  if (address->ss_family == AF_INET)
    return ntohl(((const struct sockaddr_in*)address)->sin_addr.s_addr) >> 24 == 127;
  return address->ss_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6*)address)->sin6_addr);
}

void address_text(const struct sockaddr_storage* address, char text[64]) {
  char host[INET6_ADDRSTRLEN] = "?";
  if (address->ss_family == AF_INET) {
    const struct sockaddr_in* four = (const struct sockaddr_in*)address;
    inet_ntop(AF_INET, &four->sin_addr, host, sizeof host);
    snprintf(text, 64, "%s:%d", host, ntohs(four->sin_port));
  } else if (address->ss_family == AF_INET6) {
    const struct sockaddr_in6* six = (const struct sockaddr_in6*)address;
    inet_ntop(AF_INET6, &six->sin6_addr, host, sizeof host);
    snprintf(text, 64, "[%s]:%d", host, ntohs(six->sin6_port));
  } else {
    snprintf(text, 64, "this machine");
  }
}

/* ---- bytes ---- */

/* Receive exactly so many bytes before a moment; SO_RCVTIMEO says how long there may be silence. */
static int receive_all(connection* link, uint8_t* data, size_t bytes, uint64_t until_ms) {
  while (bytes) {
    ssize_t got = recv(link->socket, data, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return break_with(link, is_silence() ? "is silent" : "broke the connection");
    if (!got) return break_with(link, "closed the connection");
    if (until_ms && now_ms() > until_ms) return break_with(link, "is too slow");
    data += got, bytes -= (size_t)got;
  }
  return 0;
}

static int send_all(connection* link, struct iovec* parts, int count) {
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
  while (message.msg_iovlen) {
    ssize_t sent = sendmsg(link->socket, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return break_with(link, is_silence() ? "takes nothing" : "broke the connection");
    size_t left = (size_t)sent;
    while (message.msg_iovlen && left >= message.msg_iov->iov_len) {
      left -= message.msg_iov->iov_len;
      ++message.msg_iov, --message.msg_iovlen;
    }
    if (message.msg_iovlen) {
      message.msg_iov->iov_base = (char*)message.msg_iov->iov_base + left;
      message.msg_iov->iov_len -= left;
    }
  }
  link->last_sent_ms = now_ms();
  return 0;
}

static int send_bytes(connection* link, const void* data, size_t bytes) {
  struct iovec part = {(void*)data, bytes};
  return send_all(link, &part, 1);
}

/* The next sealed message, opened in link->in. */
static int receive_sealed(connection* link) {
  uint8_t length[2];
  if (receive_all(link, length, 2, 0)) return -1;
  size_t bytes = (size_t)length[0] << 8 | length[1];
  if (bytes <= NOISE_TAG_BYTES) return break_with(link, "sent a message that is too short");
  if (receive_all(link, link->in, bytes, 0)) return -1;
  if (noise_open(&link->channel, link->in, bytes))
    return break_with(link, "sent a message that was changed on its way");
  link->in_place = 0, link->in_end = bytes - NOISE_TAG_BYTES;
  return 0;
}

static int receive_plain(connection* link) {
  for (;;) {
    ssize_t got = recv(link->socket, link->in, sizeof link->in, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return break_with(link, is_silence() ? "is silent" : "broke the connection");
    if (!got) return break_with(link, "closed the connection");
    link->in_place = 0, link->in_end = (size_t)got;
    return 0;
  }
}

int connection_read(connection* link, void* data, size_t bytes) {
  uint8_t* to = data;
  while (bytes) {
    size_t held = link->in_end - link->in_place;
    if (!held) {
      if (!link->secure && bytes >= LARGE_BYTES) return receive_all(link, to, bytes, 0);
      if (link->secure ? receive_sealed(link) : receive_plain(link)) return -1;
      continue;
    }
    size_t part = held < bytes ? held : bytes;
    memcpy(to, link->in + link->in_place, part);
    link->in_place += part;
    to += part, bytes -= part;
  }
  return 0;
}

int connection_read_frame(connection* link, frame* header) {
  return connection_read(link, header, FRAME_BYTES);
}

/* Send what is in link->out, and these bytes behind it if there is no key. */
static int flush(connection* link, const void* data, size_t bytes) {
  if (!link->secure) {
    struct iovec parts[2] = {{link->out + 2, link->out_end}, {(void*)data, bytes}};
    link->out_end = 0;
    return send_all(link, parts, bytes ? 2 : 1);
  }
  size_t sealed = link->out_end + NOISE_TAG_BYTES;
  link->out[0] = (uint8_t)(sealed >> 8), link->out[1] = (uint8_t)sealed;
  noise_seal(&link->channel, link->out + 2, link->out_end, link->out + 2);
  link->out_end = 0;
  return send_bytes(link, link->out, 2 + sealed);
}

static int write_bytes(connection* link, const uint8_t* data, size_t bytes) {
  if (!link->secure && bytes >= LARGE_BYTES) return flush(link, data, bytes);
  while (bytes) {
    size_t room = SEALED_PLAIN_BYTES - link->out_end, part = room < bytes ? room : bytes;
    memcpy(link->out + 2 + link->out_end, data, part);
    link->out_end += part;
    data += part, bytes -= part;
    if (bytes && flush(link, NULL, 0)) return -1;
  }
  return 0;
}

static int send_locked(connection* link, const frame* header, const void* payload) {
  if (link->unsendable) return -1;
  link->unsendable = 1;
  link->out_end = 0;
  if (write_bytes(link, (const uint8_t*)header, FRAME_BYTES)) return -1;
  if (header->bytes && write_bytes(link, payload, header->bytes)) return -1;
  if (link->out_end && flush(link, NULL, 0)) return -1;
  link->unsendable = 0;
  return 0;
}

int connection_send(connection* link, const frame* header, const void* payload) {
  pthread_mutex_lock(&link->sending);
  int failed = send_locked(link, header, payload);
  pthread_mutex_unlock(&link->sending);
  return failed;
}

void connection_ping(connection* link, uint64_t within_ms) {
  if (pthread_mutex_trylock(&link->sending)) return;
  struct pollfd writable = {link->socket, POLLOUT, 0};
  if (now_ms() - link->last_sent_ms >= within_ms && poll(&writable, 1, 0) == 1 &&
      writable.revents == POLLOUT)
    send_locked(link, &(frame){.type = FRAME_PING}, NULL);
  pthread_mutex_unlock(&link->sending);
}

/* ---- begin and end ---- */

void connection_timeout(connection* link, int timeout_ms) {
  struct timeval time = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
  link->timeout_ms = timeout_ms;
  setsockopt(link->socket, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
  setsockopt(link->socket, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

static void begin(connection* link, int socket, const uint8_t* key, int timeout_ms) {
  int on = 1;
  link->socket = socket;
  link->secure = key != NULL;
  link->broken = NULL;
  link->unsendable = 0;
  link->in_place = link->in_end = link->out_end = 0;
  link->last_sent_ms = now_ms();
  pthread_mutex_init(&link->sending, NULL);
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  connection_timeout(link, timeout_ms);
}

int connection_accept(connection* link, int socket, const uint8_t* key, int timeout_ms) {
  uint8_t preface[PREFACE_BYTES], message[NOISE_HANDSHAKE_BYTES], answer[NOISE_HANDSHAKE_BYTES];
  struct sockaddr_storage address = {0};
  socklen_t bytes = sizeof address;
  begin(link, socket, key, timeout_ms);
  getpeername(socket, (struct sockaddr*)&address, &bytes);
  address_text(&address, link->peer);
  uint64_t until = now_ms() + (uint64_t)timeout_ms;
  if (receive_all(link, preface, sizeof preface, until)) return -1;
  if (!key) {
    if (!memcmp(preface, plain_preface, PREFACE_BYTES)) return 0;
    return break_with(link, memcmp(preface, sealed_preface, PREFACE_BYTES)
                                ? "is no program of edgec"
                                : "has a key, and this stage was started without --key");
  }
  if (memcmp(preface, sealed_preface, PREFACE_BYTES)) return break_with(link, "has no key");
  if (receive_all(link, message, sizeof message, until)) return -1;
  if (noise_answer(key, message, answer, &link->channel)) return break_with(link, "has another key");
  return send_bytes(link, answer, sizeof answer);
}

/* Connect within the time; -1 with errno. */
static int connect_socket(const struct sockaddr_storage* address, unsigned bytes, int timeout_ms) {
  int opened = socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (opened < 0) return -1;
  int error = 0;
  socklen_t size = sizeof error;
  if (connect(opened, (const struct sockaddr*)address, bytes)) {
    struct pollfd waiting = {opened, POLLOUT, 0};
    if (errno != EINPROGRESS)
      error = errno;
    else if (poll(&waiting, 1, timeout_ms) != 1)
      error = ETIMEDOUT;
    else
      getsockopt(opened, SOL_SOCKET, SO_ERROR, &error, &size);
  }
  if (error) {
    close(opened);
    errno = error;
    return -1;
  }
  fcntl(opened, F_SETFL, fcntl(opened, F_GETFL) & ~O_NONBLOCK);
  return opened;
}

int connection_open(connection* link, const char* text, const uint8_t* key, int timeout_ms) {
  struct sockaddr_storage address = {0};
  unsigned bytes;
  link->broken = NULL;
  link->socket = -1;
  snprintf(link->peer, sizeof link->peer, "%s", text);
  if (address_of(text, &address, &bytes)) return break_with(link, "is no address");
  if (!key && !is_loopback(&address))
    return break_with(link, "is beyond this machine, and there is no key");
  int opened = connect_socket(&address, bytes, timeout_ms);
  if (opened < 0) return break_with(link, "cannot be reached");
  begin(link, opened, key, timeout_ms);
  if (send_bytes(link, key ? sealed_preface : plain_preface, PREFACE_BYTES)) return -1;
  if (!key) return 0;
  noise_handshake handshake;
  uint8_t message[NOISE_HANDSHAKE_BYTES];
  if (noise_begin(&handshake, key, message)) return break_with(link, "gets no random numbers");
  if (send_bytes(link, message, sizeof message)) return -1;
  if (receive_all(link, message, sizeof message, now_ms() + (uint64_t)timeout_ms)) return -1;
  if (noise_finish(&handshake, message, &link->channel)) return break_with(link, "has another key");
  return 0;
}

void connection_close(connection* link) {
  if (link->socket < 0) return;
  close(link->socket);
  link->socket = -1;
  pthread_mutex_destroy(&link->sending);
  memset(&link->channel, 0, sizeof link->channel);
}
