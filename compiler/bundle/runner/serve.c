/* The command line of a stage, and its listener. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection.h"
#include "files.h"
#include "process.h"
#include "sha256.h"
#include "stage.h"

enum { USAGE = 2, BAD_INPUT = TRUST_BAD_INPUT, LISTENING = 16, THREAD_BYTES = 256 << 10 };
enum { MOST_MANIFEST_BYTES = 1 << 28, MOST_KEY_FILE_BYTES = 4096 };

const char serve_usage[] =
    "or, as one stage of a split model: ./run --serve HOST:PORT [options]\n"
    "  --key FILE                 64 hexadecimal digits that host and stages share; all that is sent\n"
    "                             is encrypted. Beyond this machine (127.0.0.1) a stage needs one\n"
    "  --slots N                  requests that there is memory for at once (default 4)\n"
    "  --threads N                as above\n"
    "  --attached                 end when the standard input does\n";

int asks_to_serve(int count, char** arguments) {
  for (int i = 1; i < count; ++i)
    if (!strcmp(arguments[i], "--serve")) return 1;
  return 0;
}

static int32_t whole_number(const char* option, const char* value, long least, long most) {
  char* end;
  long number = strtol(value, &end, 10);
  if (end == value || *end || number < least || number > most)
    fail(USAGE, "%s is %s; give a whole number from %ld to %ld", option, value, least, most);
  return (int32_t)number;
}

static void read_key(const char* path, uint8_t key[NOISE_KEY_BYTES]) {
  size_t bytes;
  char* text = trust_read_file(path, MOST_KEY_FILE_BYTES, &bytes);
  if (!text) fail(BAD_INPUT, "cannot read the key %s", path);
  while (bytes && strchr(" \t\r\n", text[bytes - 1])) text[--bytes] = 0;
  if (bytes != 2 * NOISE_KEY_BYTES || trust_from_hex(text, key, NOISE_KEY_BYTES))
    fail(BAD_INPUT, "key %s is not 64 hexadecimal digits of lower case", path);
  memset(text, 0, bytes);
  free(text);
}

/* Which bundle this is: the digest of its manifest. */
static void digest_of(const char* bundle, uint8_t digest[32]) {
  char path[TRUST_PATH_BYTES];
  size_t bytes;
  char* text = trust_join(bundle, "manifest.json", path)
                   ? NULL
                   : trust_read_file(path, MOST_MANIFEST_BYTES, &bytes);
  if (!text) fail(BAD_INPUT, "cannot read manifest.json of bundle %s", bundle);
  sha256 hash;
  sha256_init(&hash);
  sha256_update(&hash, (const uint8_t*)text, bytes);
  sha256_final(&hash, digest);
  free(text);
}

static int listen_at(const char* text, int has_key, char listening[64]) {
  struct sockaddr_storage address = {0};
  unsigned bytes;
  socklen_t size = sizeof address;
  int on = 1;
  if (address_of(text, &address, &bytes))
    fail(USAGE, "--serve is %s; give an address and a port, for example 127.0.0.1:7000", text);
  if (!has_key && !is_loopback(&address))
    fail(USAGE, "--serve %s is beyond this machine, where everyone could read along: add --key FILE",
         text);
  int listener = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
      bind(listener, (struct sockaddr*)&address, bytes) || listen(listener, LISTENING) ||
      getsockname(listener, (struct sockaddr*)&address, &size))
    fail(BAD_INPUT, "cannot listen at %s: %s", text, strerror(errno));
  address_text(&address, listening);
  return listener;
}

typedef struct {
  stage* stage;
  int socket;
} accepted;

static void* serve_accepted(void* context) {
  accepted* one = context;
  stage_connection(one->stage, one->socket);
  free(one);
  return NULL;
}

/* Accept until the standard input ends, if this process is attached to it. */
static void accept_all(stage* stage, int listener, int attached) {
  pthread_attr_t detached;
  pthread_attr_init(&detached);
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&detached, THREAD_BYTES);
  struct pollfd waiting[2] = {{listener, POLLIN, 0}, {attached ? STDIN_FILENO : -1, POLLIN, 0}};
  for (;;) {
    if (poll(waiting, 2, -1) < 0) continue;
    char ignored[256];
    if (waiting[1].revents && read(STDIN_FILENO, ignored, sizeof ignored) <= 0) return;
    if (!waiting[0].revents) continue;
    int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (socket < 0) continue;
    accepted* one = malloc(sizeof *one);
    pthread_t thread;
    if (one) *one = (accepted){stage, socket};
    if (!one || pthread_create(&thread, &detached, serve_accepted, one)) {
      close(socket);
      free(one);
    }
  }
}

int serve(const edgec_model* code, const char* bundle, int count, char** arguments) {
  const char *address = NULL, *key_file = NULL, *why;
  static uint8_t key[NOISE_KEY_BYTES];
  uint8_t digest[32];
  char listening[64];
  int32_t slots = 4, threads = 0, attached = 0;
  for (int i = 1; i < count; ++i) {
    const char* option = arguments[i];
    if (!strcmp(option, "--attached")) {
      attached = 1;
      continue;
    }
    const char* value = i + 1 < count ? arguments[++i] : NULL;
    if (!value) fail(USAGE, "%s is unknown or needs a value; see ./run --help", option);
    if (!strcmp(option, "--serve"))
      address = value;
    else if (!strcmp(option, "--key"))
      key_file = value;
    else if (!strcmp(option, "--slots"))
      slots = whole_number(option, value, 1, 64);
    else if (!strcmp(option, "--threads"))
      threads = whole_number(option, value, 0, 1024);
    else if (strcmp(option, "--bundle"))
      fail(USAGE, "%s does not go with --serve; see ./run --help", option);
  }
  signal(SIGPIPE, SIG_IGN);
  if (key_file) read_key(key_file, key);
  digest_of(bundle, digest);
  int listener = listen_at(address, key_file != NULL, listening);
  stage* made = stage_new(code, threads, slots, key_file ? key : NULL, digest, &why);
  if (!made) fail(BAD_INPUT, "%s", why);
  printf("{\"listening\": \"%s\", \"slots\": %d}\n", listening, slots);
  if (fflush(stdout)) fail(BAD_INPUT, "cannot write to the standard output");
  accept_all(made, listener, attached);
  /* Other threads may be at work: nothing is cleaned up but by the system. */
  _exit(0);
}
