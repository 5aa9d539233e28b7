/* Sends damaged frames to a stage, over connections of this process.
 *
 *     fuzz_stage SEED CASES
 *
 * The stage serves a model that is written down here: z = 2 x + y. A case is a session whose messages
 * are damaged at random. Whatever comes, the stage must answer a right session afterwards, and rightly;
 * the sanitizers see what it reads and writes beside its memory. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection.h"
#include "stage.h"

enum { COUNT = 16, BYTES = COUNT * sizeof(float), SLOTS = 2, MOST = 4096, TIMEOUT_MS = 2000 };

/* ---- a model ---- */

static const int64_t shape[1] = {COUNT};
static const edgec_tensor inputs[2] = {{"x", "float32", 1, shape, BYTES},
                                       {"y", "float32", 1, shape, BYTES}};
static const edgec_tensor outputs[1] = {{"z", "float32", 1, shape, BYTES}};
static const edgec_program programs[1] = {{"", 2, 1, inputs, outputs, NULL, 1}};
static int one_session;

static edgec_session* open_session(int32_t threads) {
  (void)threads;
  return (edgec_session*)&one_session;
}
static int32_t run_program(edgec_session* session, int32_t program, const void* const* in,
                           void* const* out, uint64_t* nanoseconds) {
  const float *x = in[0], *y = in[1];
  (void)session, (void)program, (void)nanoseconds;
  for (int i = 0; i < COUNT; ++i) ((float*)out[0])[i] = 2 * x[i] + y[i];
  return 0;
}
static void reset(edgec_session* session) { (void)session; }
static const char* last_error(const edgec_session* session) {
  (void)session;
  return "";
}
static const edgec_model model = {.abi = EDGEC_ABI,
                                  .open = open_session,
                                  .error = last_error,
                                  .program_count = 1,
                                  .programs = programs,
                                  .run_program = run_program,
                                  .reset = reset};

/* ---- chance ---- */

static uint64_t state;

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t random_number(uint64_t below) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (z ^ z >> 31) % below;
}

/* ---- a session ---- */

static stage* served;

static void* serve_one(void* context) {
  stage_connection(served, *(int*)context);
  return NULL;
}

/* A session's bytes: preface, HELLO, ROUTES and some values. */
typedef struct {
  uint8_t data[MOST];
  size_t bytes;
} message;

static void add(message* all, const void* data, size_t bytes) {
  memcpy(all->data + all->bytes, data, bytes);
  all->bytes += bytes;
}

static void add_frame(message* all, frame header, const void* payload) {
  add(all, &header, FRAME_BYTES);
  add(all, payload, header.bytes);
}

static void add_value(message* all, uint64_t request, uint8_t value) {
  float data[COUNT];
  for (int i = 0; i < COUNT; ++i) data[i] = (float)(value ? 100 : i);
  add_frame(all, (frame){FRAME_DATA, 0, 0, value, BYTES, request}, data);
}

static void begin(message* all) {
  uint8_t hello[24] = {1, 0, 0, 0}, id[16] = {7};
  const int32_t timeout_ms = TIMEOUT_MS;
  /* Own number 0, no other stages; the program is used; both inputs are the host's; the output goes to
   * the host as number 0. */
  static const uint8_t routes[] = {0, 0, 1, 0xff, 0xff, 1, 0, 0, 0};
  memcpy(hello + 4, &timeout_ms, 4);
  memcpy(hello + 8, id, sizeof id);
  all->bytes = 0;
  add(all, "edgec-p1", 8);
  add_frame(all, (frame){.type = FRAME_HELLO, .bytes = sizeof hello}, hello);
  add_frame(all, (frame){.type = FRAME_ROUTES, .bytes = sizeof routes}, routes);
  for (uint64_t request = 0; request < SLOTS; ++request)
    for (uint8_t value = 0; value < 2; ++value) add_value(all, request, value);
}

/* One to three bits, bytes, cuts, copies or numbers that say how long something is. */
static void damage(message* all) {
  for (uint64_t i = 1 + random_number(3); i && all->bytes; --i) {
    size_t place = (size_t)random_number(all->bytes), left = all->bytes - place;
    size_t length = (size_t)random_number(left < 64 ? left : 64);
    static const uint32_t sizes[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, BYTES + 1, BYTES - 1};
    switch (random_number(5)) {
      case 0: all->data[place] ^= (uint8_t)(1 << random_number(8)); break;
      case 1: all->data[place] = (uint8_t)random_number(256); break;
      case 2:
        memmove(all->data + place, all->data + place + length, left - length);
        all->bytes -= length;
        break;
      case 3:
        if (all->bytes + length > MOST) break;
        memmove(all->data + place + length, all->data + place, left);
        all->bytes += length;
        break;
      default:
        if (left >= 4) memcpy(all->data + place, &sizes[random_number(7)], 4);
    }
  }
}

static int read_all(int socket, void* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    ssize_t got = read(socket, (char*)data + done, bytes - done);
    if (got <= 0) return -1;
    done += (size_t)got;
  }
  return 0;
}

/* Whether the stage answers both requests as it should. */
static int answers(int socket) {
  static uint8_t payload[1 << 16];
  int right = 0;
  frame header;
  while (right < SLOTS && !read_all(socket, &header, FRAME_BYTES)) {
    if (header.bytes > sizeof payload || read_all(socket, payload, header.bytes)) return 0;
    if (header.type != FRAME_DATA) continue;
    for (int i = 0; i < COUNT; ++i)
      if (((float*)payload)[i] != (float)(2 * i + 100)) return 0;
    ++right;
  }
  return right == SLOTS;
}

/* Send a session's bytes to the stage; whether it answers, if that is asked. */
static int send_session(const message* all, int expect) {
  int pair[2], right = 1;
  pthread_t thread;
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) exit(2);
  pthread_create(&thread, NULL, serve_one, &pair[1]);
  if (write(pair[0], all->data, all->bytes) < 0) right = !expect;
  if (right && expect) right = answers(pair[0]);
  shutdown(pair[0], SHUT_WR);
  /* Until the stage has closed. */
  char rest[4096];
  while (read(pair[0], rest, sizeof rest) > 0) continue;
  close(pair[0]);
  pthread_join(thread, NULL);
  return right;
}

int main(int count, char** arguments) {
  static const uint8_t digest[32];
  const char* why;
  if (count != 3) return 2;
  state = strtoull(arguments[1], NULL, 10);
  served = stage_new(&model, 1, SLOTS, NULL, digest, &why);
  if (!served) return 2;
  message right, damaged;
  begin(&right);
  for (long cases = atol(arguments[2]); cases >= 0; --cases) {
    if (cases % 16 == 0 && !send_session(&right, 1)) {
      printf("a right session is not answered any more\n");
      return 1;
    }
    begin(&damaged);
    damage(&damaged);
    send_session(&damaged, 0);
  }
  return 0;
}
