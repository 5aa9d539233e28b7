/* One stage of a split model.
 *
 * A host opens a session: it says who it is (HELLO), then where each input comes from and each output
 * goes to (ROUTES). The stage connects with the stages that its outputs go to. Then values arrive
 * (DATA) in slots, memory for one request each; when all inputs of the next request are there it is
 * computed, and its outputs are sent. Who sends values to a stage may be `slots` requests ahead of what
 * the stage has computed, no more: CREDIT says so to other stages, DONE to the host. So no reader ever
 * waits for room, and nothing is allocated after the start.
 *
 * Threads: one computes; one reads each connection; one for each place that outputs go to sends; one
 * pings. When there is nothing to compute, the one that computes sends by itself, which saves a waking
 * up. The thread that reads from the host owns the session and ends it. */
#define _GNU_SOURCE
#include "stage.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection.h"

enum {
  VERSION = 1,
  MOST_PROGRAMS = 64,
  MOST_TENSORS = 64, /* inputs or outputs of a program */
  MOST_STAGES = 64,
  MOST_SLOTS = 64,
  MOST_CONNECTIONS = 64,
  HELLO_BYTES = 24,
  ROUTES_BYTES = 65536,
  HANDSHAKE_MS = 1000,
  LEAST_TIMEOUT_MS = 50,
  MOST_TIMEOUT_MS = 600000,
  THREAD_BYTES = 256 << 10,
  ALIGNMENT = 64
};
enum { ROLE_HOST = 0, ROLE_STAGE = 1 };
/* In place of a stage's number: the host as a source; and that no other stage is to blame. */
enum { FROM_HOST = 0xff, NOBODY = 0xff };

/* Where a value goes to: an outlet, and the numbers that the program and the value have there. */
typedef struct {
  uint8_t outlet, program, value;
} target;

typedef struct {
  int32_t count;
  target targets[MOST_STAGES + 1];
} route;

typedef struct {
  size_t inputs[MOST_TENSORS], outputs[MOST_TENSORS]; /* places in a slot */
  uint8_t sources[MOST_TENSORS];
  route routes[MOST_TENSORS];
} program_plan;

/* What a slot holds of one request. */
typedef struct {
  uint8_t *inputs, *outputs; /* blocks for all of them */
  uint8_t here[MOST_TENSORS];
  int32_t program, missing; /* program: -1 as long as nothing of the request is here */
  uint8_t flags;
  uint64_t complete; /* ns */
} arriving;

typedef struct {
  int32_t program;
  uint8_t flags;
  uint64_t arrived, began, ended; /* ns */
} computed_request;

/* Where outputs go to: the host, or another stage. */
typedef struct {
  struct stage* stage;
  connection* link;
  uint64_t sent, limit; /* requests */
  int32_t number;
  int busy;             /* a thread sends */
  uint8_t stage_number; /* of who is there */
  pthread_t sender, reader;
} outlet;

typedef enum { IDLE, OPEN, ROUTED, ENDING } session_state;

struct stage {
  const edgec_model* code;
  edgec_session* session;
  int32_t slots;
  const uint8_t* key;
  uint8_t digest[32];
  program_plan programs[MOST_PROGRAMS];
  arriving arriving[MOST_SLOTS];
  computed_request computed_requests[MOST_SLOTS];

  pthread_mutex_t lock;
  pthread_cond_t changed;
  pthread_attr_t small;
  connection* free_links[MOST_CONNECTIONS];
  int32_t free_count;

  /* The session. */
  session_state state;
  uint8_t id[16];
  int32_t timeout_ms;
  connection* host;
  connection* producers[256]; /* by the number of the stage that sends */
  outlet outlets[1 + MOST_STAGES];
  int32_t outlet_count;
  int32_t readers; /* of producers' connections */
  int32_t running; /* the model runs, or its producers are told */
  uint64_t computed;
  uint8_t routes[ROUTES_BYTES];
  uint8_t culprit; /* the stage whose connection ended the session */
  char reason[512];
};

/* ---- connections ---- */

static connection* take_link(stage* stage) {
  pthread_mutex_lock(&stage->lock);
  connection* link = stage->free_count ? stage->free_links[--stage->free_count] : NULL;
  pthread_mutex_unlock(&stage->lock);
  return link;
}

static void give_link(stage* stage, connection* link) {
  connection_close(link);
  pthread_mutex_lock(&stage->lock);
  stage->free_links[stage->free_count++] = link;
  pthread_mutex_unlock(&stage->lock);
}

/* The session ends, for this reason unless there is one. The lock is held. */
static void end_session(stage* stage, uint8_t culprit, const char* who, const char* why) {
  if (stage->state != OPEN && stage->state != ROUTED) return;
  stage->state = ENDING;
  stage->culprit = culprit;
  snprintf(stage->reason, sizeof stage->reason, "%s %s", who, why);
  /* Readers wake up; the host is still told why. */
  if (stage->host) shutdown(stage->host->socket, SHUT_RD);
  for (int32_t i = 0; i < 256; ++i)
    if (stage->producers[i]) shutdown(stage->producers[i]->socket, SHUT_RDWR);
  for (int32_t i = 1; i < stage->outlet_count; ++i)
    if (stage->outlets[i].link) shutdown(stage->outlets[i].link->socket, SHUT_RDWR);
  pthread_cond_broadcast(&stage->changed);
}

static void end_with(stage* stage, uint8_t culprit, const char* who, const char* why) {
  pthread_mutex_lock(&stage->lock);
  end_session(stage, culprit, who, why);
  pthread_mutex_unlock(&stage->lock);
}

/* ---- computing ---- */

/* Whether the inputs of the next request are here, and there is room for its outputs. */
static int is_ready(const stage* stage) {
  const arriving* next = &stage->arriving[stage->computed % (uint64_t)stage->slots];
  if (stage->state != ROUTED || next->program < 0 || next->missing) return 0;
  for (int32_t i = 0; i < stage->outlet_count; ++i)
    if (stage->outlets[i].sent + (uint64_t)stage->slots <= stage->computed) return 0;
  return 1;
}

static int run_model(stage* stage, arriving* slot) {
  const edgec_program* program = &stage->code->programs[slot->program];
  const program_plan* plan = &stage->programs[slot->program];
  const void* inputs[MOST_TENSORS];
  void* outputs[MOST_TENSORS];
  for (int32_t i = 0; i < program->input_count; ++i) inputs[i] = slot->inputs + plan->inputs[i];
  for (int32_t i = 0; i < program->output_count; ++i) outputs[i] = slot->outputs + plan->outputs[i];
  if (slot->flags & FRAME_BEGINS) stage->code->reset(stage->session);
  return stage->code->run_program(stage->session, slot->program, inputs, outputs, NULL);
}

/* Tell who sends values that there is room for one request more. */
static void give_credit(stage* stage, uint64_t limit) {
  for (int32_t i = 0; i < 256; ++i)
    if (stage->producers[i])
      connection_send(stage->producers[i], &(frame){.type = FRAME_CREDIT, .request = limit}, NULL);
}

static int send_outputs(outlet* out, uint64_t number);

/* Whether there is a request to send now, and nobody who does. */
static int can_send(const outlet* out) {
  return !out->busy && out->sent < out->stage->computed && out->sent < out->limit;
}

/* Send the outputs of one request. The lock is held, and let go meanwhile. */
static void send_next(outlet* out) {
  stage* stage = out->stage;
  out->busy = 1;
  pthread_mutex_unlock(&stage->lock);
  int failed = send_outputs(out, out->sent);
  pthread_mutex_lock(&stage->lock);
  out->busy = 0;
  if (failed) end_session(stage, out->stage_number, out->link->peer, out->link->broken);
  ++out->sent;
}

/* Send what was just computed, unless there is more to compute. The lock is held. */
static void send_at_once(stage* stage) {
  for (int32_t i = stage->outlet_count - 1; i >= 0; --i) {
    outlet* out = &stage->outlets[i];
    if (stage->state != ROUTED || is_ready(stage)) return;
    if (out->sent + 1 == stage->computed && can_send(out)) send_next(out);
  }
}

static void* compute(void* context) {
  stage* stage = context;
  pthread_mutex_lock(&stage->lock);
  for (;;) {
    while (!is_ready(stage)) pthread_cond_wait(&stage->changed, &stage->lock);
    const uint64_t number = stage->computed;
    arriving* slot = &stage->arriving[number % (uint64_t)stage->slots];
    computed_request* result = &stage->computed_requests[number % (uint64_t)stage->slots];
    stage->running = 1;
    pthread_mutex_unlock(&stage->lock);
    result->program = slot->program;
    result->flags = slot->flags;
    result->arrived = slot->complete;
    result->began = monotonic_ns();
    int failed = run_model(stage, slot);
    result->ended = monotonic_ns();
    pthread_mutex_lock(&stage->lock);
    if (failed) end_session(stage, NOBODY, "the model:", stage->code->error(stage->session));
    if (stage->state == ROUTED) {
      slot->program = -1;
      ++stage->computed;
      send_at_once(stage);
      pthread_cond_broadcast(&stage->changed);
      pthread_mutex_unlock(&stage->lock);
      give_credit(stage, number + 1 + (uint64_t)stage->slots);
      pthread_mutex_lock(&stage->lock);
    }
    stage->running = 0;
    pthread_cond_broadcast(&stage->changed);
  }
  return NULL;
}

/* ---- sending ---- */

static int send_outputs(outlet* out, uint64_t number) {
  stage* stage = out->stage;
  const uint64_t slot = number % (uint64_t)stage->slots;
  const computed_request* result = &stage->computed_requests[slot];
  const program_plan* plan = &stage->programs[result->program];
  const edgec_program* program = &stage->code->programs[result->program];
  for (int32_t i = 0; i < program->output_count; ++i)
    for (int32_t t = 0; t < plan->routes[i].count; ++t) {
      const target to = plan->routes[i].targets[t];
      if (to.outlet != out->number) continue;
      const uint32_t bytes = (uint32_t)program->outputs[i].bytes;
      frame header = {FRAME_DATA, result->flags, to.program, to.value, bytes, number};
      if (connection_send(out->link, &header, stage->arriving[slot].outputs + plan->outputs[i]))
        return -1;
    }
  if (out->number) return 0;
  uint64_t times[4] = {result->arrived, result->began, result->ended, monotonic_ns()};
  return connection_send(
      out->link, &(frame){.type = FRAME_DONE, .bytes = sizeof times, .request = number}, times);
}

static void* send_all_outputs(void* context) {
  outlet* out = context;
  stage* stage = out->stage;
  pthread_mutex_lock(&stage->lock);
  for (;;) {
    while (stage->state == OPEN || (stage->state == ROUTED && !can_send(out)))
      pthread_cond_wait(&stage->changed, &stage->lock);
    if (stage->state != ROUTED) break;
    send_next(out);
    pthread_cond_broadcast(&stage->changed);
  }
  pthread_mutex_unlock(&stage->lock);
  return NULL;
}

/* Ping whoever was sent nothing for a quarter of the time after which a silent side is dead. */
static void* ping_all(void* context) {
  stage* stage = context;
  pthread_mutex_lock(&stage->lock);
  while (stage->state == OPEN || stage->state == ROUTED) {
    const uint64_t quiet_ms = (uint64_t)stage->timeout_ms / 4;
    connection_ping(stage->host, quiet_ms);
    for (int32_t i = 0; i < 256; ++i)
      if (stage->producers[i]) connection_ping(stage->producers[i], quiet_ms);
    for (int32_t i = 1; i < stage->outlet_count; ++i)
      if (stage->outlets[i].link) connection_ping(stage->outlets[i].link, quiet_ms);
    uint64_t until = monotonic_ns() + quiet_ms * 1000000u;
    struct timespec time = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
    while (stage->state != ENDING && monotonic_ns() < until)
      pthread_cond_timedwait(&stage->changed, &stage->lock, &time);
  }
  pthread_mutex_unlock(&stage->lock);
  return NULL;
}

/* ---- reading ---- */

/* Put a value where it belongs. `source` is the number of the stage that sends it. 0 on success, or why
 * not. */
static const char* read_data(stage* stage, connection* link, uint8_t source, const frame* header) {
  pthread_mutex_lock(&stage->lock);
  arriving* slot = &stage->arriving[header->request % (uint64_t)stage->slots];
  const char* why = NULL;
  const edgec_program* program = NULL;
  if (stage->state != ROUTED)
    why = "sent a value before there were routes";
  else if (header->request < stage->computed ||
           header->request - stage->computed >= (uint64_t)stage->slots)
    why = "sent a value of a request that there is no room for";
  else if (header->program >= stage->code->program_count)
    why = "sent a value of a program that there is not";
  else if (slot->program >= 0 && slot->program != header->program)
    why = "sent values of two programs for one request";
  if (!why) {
    program = &stage->code->programs[header->program];
    if (header->value >= program->input_count ||
        stage->programs[header->program].sources[header->value] != source)
      why = "sent a value that it does not compute";
    else if (header->bytes != program->inputs[header->value].bytes)
      why = "sent a value of another size";
    else if (slot->program >= 0 && slot->here[header->value])
      why = "sent a value twice";
  }
  if (!why) {
    if (slot->program < 0) {
      slot->program = header->program;
      slot->missing = program->input_count;
      slot->flags = 0;
      memset(slot->here, 0, sizeof slot->here);
    }
    slot->here[header->value] = 1;
    slot->flags |= header->flags;
  }
  pthread_mutex_unlock(&stage->lock);
  if (why) return why;
  /* Nobody else touches this input's memory: it is marked as here, and the request is not complete. */
  const size_t place = stage->programs[header->program].inputs[header->value];
  if (connection_read(link, slot->inputs + place, header->bytes)) return link->broken;
  pthread_mutex_lock(&stage->lock);
  if (!--slot->missing) {
    slot->complete = monotonic_ns();
    pthread_cond_broadcast(&stage->changed);
  }
  pthread_mutex_unlock(&stage->lock);
  return NULL;
}

static const char* answer_ping(connection* link, const frame* header) {
  uint64_t clock = monotonic_ns();
  frame answer = {.type = FRAME_PONG, .bytes = sizeof clock, .request = header->request};
  return connection_send(link, &answer, &clock) ? link->broken : NULL;
}

/* Read what another stage, or the host, sends; why that ended. */
static const char* read_values(stage* stage, connection* link, uint8_t source) {
  for (;;) {
    frame header;
    const char* why = NULL;
    if (connection_read_frame(link, &header)) return link->broken;
    if (header.type == FRAME_DATA)
      why = read_data(stage, link, source, &header);
    else if (header.type != FRAME_PING || header.bytes)
      why = "sent what a stage does not take";
    else if (header.request) /* a heartbeat has none, and wants no answer */
      why = answer_ping(link, &header);
    if (why) return why;
  }
}

static void* read_credits(void* context) {
  outlet* out = context;
  stage* stage = out->stage;
  const char* why = NULL;
  while (!why) {
    frame header;
    if (connection_read_frame(out->link, &header)) {
      why = out->link->broken;
    } else if (header.bytes || (header.type != FRAME_CREDIT && header.type != FRAME_PING)) {
      why = "sent what a stage does not send";
    } else if (header.type == FRAME_CREDIT) {
      pthread_mutex_lock(&stage->lock);
      if (header.request > out->limit) out->limit = header.request;
      pthread_cond_broadcast(&stage->changed);
      pthread_mutex_unlock(&stage->lock);
    }
  }
  end_with(stage, out->stage_number, out->link->peer, why);
  return NULL;
}

/* ---- routes ---- */

typedef struct {
  const uint8_t *place, *end;
  int damaged;
} cursor;

static uint8_t next_byte(cursor* text) {
  if (text->place < text->end) return *text->place++;
  text->damaged = 1;
  return 0;
}

/* Connect with a stage whose number and address stand next. Why not, or NULL. */
static const char* open_outlet(stage* stage, cursor* text, uint8_t own_number) {
  char address[256];
  const uint8_t other_number = next_byte(text), length = next_byte(text);
  if (text->end - text->place < length) return "sent damaged routes";
  memcpy(address, text->place, length);
  address[length] = 0;
  text->place += length;
  connection* link = take_link(stage);
  if (!link) return "asks for more connections than a stage has";
  outlet* out = &stage->outlets[stage->outlet_count];
  int failed = connection_open(link, address, stage->key, stage->timeout_ms);
  uint8_t hello[HELLO_BYTES] = {VERSION, 0, ROLE_STAGE, own_number};
  memcpy(hello + 4, &stage->timeout_ms, 4);
  memcpy(hello + 8, stage->id, sizeof stage->id);
  frame answer = {0};
  if (!failed)
    failed = connection_send(link, &(frame){.type = FRAME_HELLO, .bytes = HELLO_BYTES}, hello) ||
             connection_read_frame(link, &answer);
  if (!failed && (answer.type != FRAME_CREDIT || answer.bytes)) link->broken = "refused this stage";
  if (failed || link->broken) {
    end_with(stage, other_number, address, link->broken);
    give_link(stage, link);
    return "";
  }
  pthread_mutex_lock(&stage->lock);
  out->stage = stage;
  out->link = link;
  out->sent = 0;
  out->limit = answer.request;
  out->stage_number = other_number;
  out->number = stage->outlet_count++;
  pthread_mutex_unlock(&stage->lock);
  return NULL;
}

/* Payload of ROUTES: own number; count of stages; of each its number and the length of its address and
 * the address; then for each program: whether it is used; of each input its source; of each output how many targets, each an
 * outlet (0: the host) and the numbers of program and value there. */
static const char* read_routes(stage* stage, const uint8_t* data, size_t bytes) {
  cursor text = {data, data + bytes, 0};
  const uint8_t own_number = next_byte(&text), stages = next_byte(&text);
  if (stages > MOST_STAGES) return "sent routes to too many stages";
  for (uint8_t i = 0; i < stages; ++i) {
    const char* why = open_outlet(stage, &text, own_number);
    if (why) return why;
  }
  for (int32_t p = 0; p < stage->code->program_count; ++p) {
    const edgec_program* program = &stage->code->programs[p];
    program_plan* plan = &stage->programs[p];
    const int used = next_byte(&text);
    memset(plan->sources, FROM_HOST, sizeof plan->sources);
    memset(plan->routes, 0, sizeof plan->routes);
    if (!used) continue;
    for (int32_t i = 0; i < program->input_count; ++i) plan->sources[i] = next_byte(&text);
    for (int32_t i = 0; i < program->output_count; ++i) {
      plan->routes[i].count = next_byte(&text);
      if (plan->routes[i].count > MOST_STAGES + 1) return "sent damaged routes";
      for (int32_t t = 0; t < plan->routes[i].count; ++t) {
        target* to = &plan->routes[i].targets[t];
        to->outlet = next_byte(&text), to->program = next_byte(&text), to->value = next_byte(&text);
        if (to->outlet >= stage->outlet_count) return "sent damaged routes";
      }
    }
  }
  return text.damaged || text.place != text.end ? "sent damaged routes" : NULL;
}

/* ---- sessions ---- */

/* What a host is told of the stage: slots, how many programs, and the manifest's digest. */
static int tell_host(stage* stage, connection* link) {
  uint8_t* text = stage->routes; /* the session is ours, and has no routes yet */
  size_t place = 0;
  text[place++] = VERSION;
  text[place++] = (uint8_t)stage->slots;
  text[place++] = (uint8_t)stage->code->program_count;
  memcpy(text + place, stage->digest, sizeof stage->digest);
  place += sizeof stage->digest;
  return connection_send(link, &(frame){.type = FRAME_HELLO, .bytes = (uint32_t)place}, text);
}

/* Begin a session; waits a little for one that ends. 0 on success. */
static int begin_session(stage* stage, connection* host, const uint8_t* id, int32_t timeout_ms) {
  uint64_t until = monotonic_ns() + HANDSHAKE_MS * 1000000ull;
  struct timespec time = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
  pthread_mutex_lock(&stage->lock);
  while (stage->state != IDLE && monotonic_ns() < until)
    pthread_cond_timedwait(&stage->changed, &stage->lock, &time);
  const int mine = stage->state == IDLE;
  if (mine) {
    stage->state = OPEN;
    stage->host = host;
    memcpy(stage->id, id, sizeof stage->id);
    stage->timeout_ms = timeout_ms;
    stage->computed = 0;
    stage->reason[0] = 0;
    stage->culprit = NOBODY;
    stage->outlets[0] = (outlet){
        .stage = stage, .link = host, .limit = UINT64_MAX, .stage_number = NOBODY};
    stage->outlet_count = 1;
    for (int32_t i = 0; i < stage->slots; ++i) stage->arriving[i].program = -1;
  }
  pthread_mutex_unlock(&stage->lock);
  return mine ? 0 : -1;
}

/* Read routes and connect. 0 if values may come, else why not; "" if the session's reason says so. */
static const char* await_routes(stage* stage, connection* host) {
  frame header;
  do
    if (connection_read_frame(host, &header)) return host->broken;
  while (header.type == FRAME_PING && !header.bytes);
  if (header.type != FRAME_ROUTES || header.bytes > ROUTES_BYTES) return "sent no routes";
  if (connection_read(host, stage->routes, header.bytes)) return host->broken;
  return read_routes(stage, stage->routes, header.bytes);
}

static void serve_host(stage* stage, connection* host) {
  pthread_t pinger;
  int32_t threads = 0;
  const int pings = !pthread_create(&pinger, &stage->small, ping_all, stage);
  const char* why = tell_host(stage, host) ? host->broken : await_routes(stage, host);
  /* Senders wait until the state is ROUTED. */
  for (; !why && threads < stage->outlet_count; ++threads) {
    outlet* out = &stage->outlets[threads];
    if (pthread_create(&out->sender, &stage->small, send_all_outputs, out)) {
      why = "asks for more threads than there are";
      break;
    }
    if (out->number && pthread_create(&out->reader, &stage->small, read_credits, out)) {
      why = "asks for more threads than there are";
      end_with(stage, NOBODY, host->peer, why);
      pthread_join(out->sender, NULL);
      break;
    }
  }
  if (!why) {
    pthread_mutex_lock(&stage->lock);
    if (stage->state == OPEN) stage->state = ROUTED;
    pthread_cond_broadcast(&stage->changed);
    pthread_mutex_unlock(&stage->lock);
    if (connection_send(host, &(frame){.type = FRAME_READY}, NULL)) why = host->broken;
  }
  if (!why) why = read_values(stage, host, FROM_HOST);
  end_with(stage, NOBODY, host->peer, why);
  /* Everyone leaves; the reader of a producer closes its own connection. */
  for (int32_t i = 0; i < threads; ++i) {
    pthread_join(stage->outlets[i].sender, NULL);
    if (i) pthread_join(stage->outlets[i].reader, NULL);
  }
  if (pings) pthread_join(pinger, NULL);
  pthread_mutex_lock(&stage->lock);
  while (stage->running || stage->readers) pthread_cond_wait(&stage->changed, &stage->lock);
  pthread_mutex_unlock(&stage->lock);
  for (int32_t i = 1; i < stage->outlet_count; ++i) give_link(stage, stage->outlets[i].link);
  frame error = {.type = FRAME_ERROR,
                 .value = stage->culprit,
                 .bytes = (uint32_t)strlen(stage->reason)};
  connection_send(host, &error, stage->reason);
  pthread_mutex_lock(&stage->lock);
  stage->state = IDLE;
  stage->host = NULL;
  pthread_cond_broadcast(&stage->changed);
  pthread_mutex_unlock(&stage->lock);
}

/* Values from another stage, of the session that it names. */
static void serve_producer(stage* stage, connection* link, uint8_t number, const uint8_t* id) {
  pthread_mutex_lock(&stage->lock);
  const int known = stage->state == ROUTED && number != FROM_HOST && !stage->producers[number] &&
                    !memcmp(stage->id, id, sizeof stage->id);
  if (known) {
    stage->producers[number] = link;
    ++stage->readers;
    connection_timeout(link, stage->timeout_ms);
  }
  frame credit = {.type = FRAME_CREDIT, .request = stage->computed + (uint64_t)stage->slots};
  pthread_mutex_unlock(&stage->lock);
  if (!known) return;
  const char* why =
      connection_send(link, &credit, NULL) ? link->broken : read_values(stage, link, number);
  pthread_mutex_lock(&stage->lock);
  end_session(stage, number, link->peer, why);
  while (stage->running) pthread_cond_wait(&stage->changed, &stage->lock);
  stage->producers[number] = NULL;
  --stage->readers;
  pthread_cond_broadcast(&stage->changed);
  pthread_mutex_unlock(&stage->lock);
}

/* Serve a host or a stage; why not, or NULL. */
static const char* serve_link(stage* stage, connection* link) {
  static const char busy[] = "another host uses this stage";
  frame header;
  uint8_t hello[HELLO_BYTES];
  int32_t timeout_ms;
  if (connection_read_frame(link, &header)) return link->broken;
  if (header.type != FRAME_HELLO || header.bytes != HELLO_BYTES) return "is no host or stage";
  if (connection_read(link, hello, HELLO_BYTES)) return link->broken;
  memcpy(&timeout_ms, hello + 4, 4);
  if (hello[0] != VERSION || hello[1] || hello[2] > ROLE_STAGE || timeout_ms < LEAST_TIMEOUT_MS ||
      timeout_ms > MOST_TIMEOUT_MS)
    return "is of another version of edgec";
  if (hello[2] == ROLE_STAGE) {
    serve_producer(stage, link, hello[3], hello + 8);
    return NULL;
  }
  if (begin_session(stage, link, hello + 8, timeout_ms)) {
    frame error = {.type = FRAME_ERROR, .value = NOBODY, .bytes = sizeof busy - 1};
    connection_send(link, &error, busy);
    return "asks while another host uses this stage";
  }
  connection_timeout(link, timeout_ms);
  serve_host(stage, link);
  return NULL;
}

void stage_connection(stage* stage, int socket) {
  connection* link = take_link(stage);
  if (!link) {
    close(socket);
    return;
  }
  const char* refused = connection_accept(link, socket, stage->key, HANDSHAKE_MS)
                            ? link->broken
                            : serve_link(stage, link);
  if (refused) fprintf(stderr, "run: refused %s: it %s\n", link->peer, refused);
  give_link(stage, link);
}

/* ---- the beginning ---- */

static size_t aligned(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* Places of tensors in a block; the bytes of the block. */
static size_t place_all(int32_t count, const edgec_tensor* tensors, size_t* places) {
  size_t end = 0;
  for (int32_t i = 0; i < count; ++i) {
    places[i] = end;
    end += aligned(tensors[i].bytes);
  }
  return end;
}

static void* block(size_t bytes) {
  void* memory = NULL;
  return posix_memalign(&memory, ALIGNMENT, bytes ? bytes : 1) ? NULL : memory;
}

stage* stage_new(const edgec_model* code, int32_t threads, int32_t slots, const uint8_t* key,
                 const uint8_t digest[32], const char** why) {
  size_t inputs = 0, outputs = 0;
  stage* made = calloc(1, sizeof *made);
  *why = "there is no memory for a stage";
  if (!made) return NULL;
  made->code = code;
  made->slots = slots;
  made->key = key;
  memcpy(made->digest, digest, sizeof made->digest);
  if (code->program_count > MOST_PROGRAMS) {
    *why = "the model has more programs than a stage can";
    return NULL;
  }
  for (int32_t p = 0; p < code->program_count; ++p) {
    const edgec_program* program = &code->programs[p];
    if (program->input_count > MOST_TENSORS || program->output_count > MOST_TENSORS ||
        !program->input_count) {
      *why = "the model has no inputs, or more inputs or outputs than a stage can";
      return NULL;
    }
    for (int32_t i = 0; i < program->input_count + program->output_count; ++i) {
      const int32_t o = i - program->input_count;
      if ((o < 0 ? program->inputs[i] : program->outputs[o]).bytes > UINT32_MAX) {
        *why = "the model has a tensor of 4 GiB or more";
        return NULL;
      }
    }
    size_t in = place_all(program->input_count, program->inputs, made->programs[p].inputs);
    size_t out = place_all(program->output_count, program->outputs, made->programs[p].outputs);
    if (in > inputs) inputs = in;
    if (out > outputs) outputs = out;
  }
  for (int32_t i = 0; i < slots; ++i)
    if (!(made->arriving[i].inputs = block(inputs)) || !(made->arriving[i].outputs = block(outputs)))
      return NULL;
  for (int32_t i = 0; i < MOST_CONNECTIONS; ++i)
    if (!(made->free_links[made->free_count++] = calloc(1, sizeof(connection)))) return NULL;
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&made->changed, &monotonic);
  pthread_mutex_init(&made->lock, NULL);
  pthread_attr_init(&made->small);
  pthread_attr_setstacksize(&made->small, THREAD_BYTES);
  *why = "there are no threads, or no memory for the model";
  pthread_t computes;
  made->session = code->open(threads);
  if (!made->session || pthread_create(&computes, NULL, compute, made)) return NULL;
  pthread_detach(computes);
  return made;
}
