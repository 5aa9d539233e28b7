/* Runs a program of a model: one kernel after the other, over inputs, outputs, weights, state and one
 * arena. See edgec.h for what a caller needs to know. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct edgec_session {
  edgec_pool* pool;
  unsigned char* arena;
  void* state_memory;
  unsigned char** states; /* by number: see edgec_buffer */
  /* Aligned copies of inputs and outputs whose memory is not aligned. */
  void** staged_inputs;
  void** staged_outputs;
  const void** inputs;
  void** outputs;
  /* Of the program and its step that run. */
  int32_t first_step, last_step;
  int32_t step;
  int32_t part;               /* of the states, counted by what its program keeps */
  int32_t parts;
  const edgec_buffer* places; /* of the next step's buffers */
  const edgec_exit* exit;     /* the next one */
  void** buffers;
  uint64_t* nanoseconds; /* that each step took, if anybody wants to know */
  uint64_t began_ns;
  char error[256]; /* of the last run */
};

edgec_step_info program_step(int32_t program, int32_t index) {
  const char* label = edgec_texts;
  index += edgec_parts[program].step;
  for (int32_t passed = 2 * index; passed; --passed) label += strlen(label) + 1;
  return (edgec_step_info){label, label + strlen(label) + 1, edgec_steps[index].flops};
}

edgec_step_info step_info(int32_t index) { return program_step(0, index); }

static void* allocate(size_t bytes) {
  void* memory = NULL;
  return posix_memalign(&memory, EDGEC_ALIGNMENT, bytes ? bytes : 1) ? NULL : memory;
}

void session_close(edgec_session* session) {
  if (!session) return;
  pool_close(session->pool);
  free(session->arena);
  free(session->state_memory);
  free(session->states);
  for (int32_t i = 0; session->staged_inputs && i < edgec_input_count; ++i)
    free(session->staged_inputs[i]);
  for (int32_t i = 0; session->staged_outputs && i < edgec_output_count; ++i)
    free(session->staged_outputs[i]);
  free(session->staged_inputs);
  free(session->staged_outputs);
  free(session->inputs);
  free(session->outputs);
  free(session->buffers);
  free(session);
}

static size_t rounded_up(size_t bytes) {
  return (bytes + EDGEC_ALIGNMENT - 1) / EDGEC_ALIGNMENT * EDGEC_ALIGNMENT;
}

/* Memory of the states: a second one for those that a program does not change in place. Zeros that
 * nobody has touched take no memory. */
static int open_states(edgec_session* session) {
  size_t bytes = EDGEC_ALIGNMENT;
  for (int32_t i = 0; i < model.state_count; ++i) bytes += 2 * rounded_up(edgec_states[i].bytes);
  session->states = calloc((size_t)model.state_count * 2 + 1, sizeof *session->states);
  session->state_memory = calloc(1, bytes);
  if (!session->states || !session->state_memory) return -1;
  unsigned char* next = session->state_memory;
  next += rounded_up((uintptr_t)next) - (uintptr_t)next;
  for (int32_t i = 0; i < model.state_count; ++i)
    for (int32_t side = 0; side < 2; ++side, next += rounded_up(edgec_states[i].bytes))
      session->states[2 * i + side] = next;
  return 0;
}

void* state_of(edgec_session* session, int32_t index) { return session->states[2 * index]; }

void reset_state(edgec_session* session) {
  for (int32_t i = 0; i < model.state_count; ++i)
    memset(session->states[2 * i], 0, edgec_states[i].bytes);
}

/* What comes before the values. All targets have little-endian numbers. */
static void write_header(unsigned char header[EDGEC_SAVED_HEADER]) {
  const uint64_t bytes = model.saved_bytes;
  memset(header, 0, EDGEC_SAVED_HEADER);
  memcpy(header, "edgec-st", 8);
  memcpy(header + 8, &bytes, sizeof bytes);
  memcpy(header + 16, edgec_digest, sizeof edgec_digest);
}

void save_state(const edgec_session* session, void* saved) {
  unsigned char* to = saved;
  write_header(to);
  to += EDGEC_SAVED_HEADER;
  for (int32_t i = 0; i < model.state_count; to += edgec_states[i++].bytes)
    memcpy(to, session->states[2 * i], edgec_states[i].bytes);
}

int32_t restore_state(edgec_session* session, const void* saved, size_t bytes) {
  unsigned char header[EDGEC_SAVED_HEADER];
  const unsigned char* from = saved;
  write_header(header);
  if (bytes != model.saved_bytes || memcmp(from, header, sizeof header)) {
    snprintf(session->error, sizeof session->error,
             "the saved state is of another model, or damaged");
    return EDGEC_OTHER_STATE;
  }
  from += EDGEC_SAVED_HEADER;
  for (int32_t i = 0; i < model.state_count; from += edgec_states[i++].bytes)
    memcpy(session->states[2 * i], from, edgec_states[i].bytes);
  return 0;
}

edgec_session* session_open(int32_t threads) {
  edgec_session* session = calloc(1, sizeof *session);
  if (!session) return NULL;
  session->pool = pool_open(session, threads);
  session->arena = allocate(model.arena_bytes);
  session->staged_inputs = calloc((size_t)edgec_input_count + 1, sizeof(void*));
  session->staged_outputs = calloc((size_t)edgec_output_count + 1, sizeof(void*));
  session->inputs = calloc((size_t)edgec_input_count + 1, sizeof(void*));
  session->outputs = calloc((size_t)edgec_output_count + 1, sizeof(void*));
  session->buffers = calloc((size_t)edgec_most_buffers + 1, sizeof(void*));
  if (!session->pool || !session->arena || !session->buffers || !session->staged_inputs ||
      !session->staged_outputs || !session->inputs || !session->outputs || open_states(session)) {
    session_close(session);
    return NULL;
  }
  return session;
}

static int aligned(const void* pointer) { return (uintptr_t)pointer % EDGEC_ALIGNMENT == 0; }

/* The pointer itself if it is aligned, else a staging buffer of the session. */
static void* stage(void** staged, const void* given, size_t bytes) {
  if (aligned(given)) return (void*)given;
  if (!*staged) *staged = allocate(bytes);
  return *staged;
}

/* Bytes of a state that the running program keeps. */
static size_t kept_bytes(const edgec_session* session, size_t state) {
  return edgec_states[state].bytes / (size_t)session->parts;
}

static unsigned char* state_side(const edgec_session* session, size_t side) {
  return session->states[side] + (size_t)session->part * kept_bytes(session, side / 2);
}

static void* resolve(const edgec_session* session, edgec_buffer buffer) {
  const size_t value = buffer >> 3;
  switch (buffer & 7) {
    case EDGEC_INPUT: return (void*)session->inputs[value];
    case EDGEC_OUTPUT: return session->outputs[value];
    case EDGEC_WEIGHT: return (void*)(edgec_weights + value * EDGEC_UNIT);
    case EDGEC_STATE: return state_side(session, value);
    default: return session->arena + value * EDGEC_UNIT;
  }
}

static void begin_steps(edgec_session* session, int32_t program, uint64_t* nanoseconds) {
  session->first_step = edgec_parts[program].step;
  session->last_step = session->first_step + model.programs[program].step_count - 1;
  session->step = session->first_step - 1;
  session->places = edgec_buffers + edgec_parts[program].buffer;
  session->exit = edgec_exits;
  while (session->exit->step < session->first_step) ++session->exit;
  session->nanoseconds = nanoseconds;
  if (nanoseconds) session->began_ns = now_ns();
}

/* Go on behind what an early exit makes needless, if it is taken. */
static void leave_early(edgec_session* session) {
  const edgec_exit* exit = session->exit++;
  const int32_t* taken = session->buffers[edgec_steps[exit->step].buffer_count - 1];
  if (!*taken) return;
  session->places += exit->skipped_buffers;
  while (++session->step < exit->next)
    if (session->nanoseconds) session->nanoseconds[session->step - session->first_step] = 0;
  --session->step;
  while (session->exit->step <= session->step) ++session->exit;
}

static const edgec_step_entry* next_step(edgec_session* session) {
  if (session->nanoseconds && session->step >= session->first_step) {
    const uint64_t now = now_ns();
    session->nanoseconds[session->step - session->first_step] = now - session->began_ns;
    session->began_ns = now;
  }
  if (session->step == session->exit->step) leave_early(session);
  if (session->step++ == session->last_step) return NULL;
  const edgec_step_entry* step = &edgec_steps[session->step];
  for (int32_t b = 0; b < step->buffer_count; ++b)
    session->buffers[b] = resolve(session, *session->places++);
  return step;
}

static void run_tasks(edgec_session* session, const edgec_step_entry* step, int32_t begin,
                      int32_t end) {
  call_kernel(step, session->buffers, begin, end);
}

static int32_t fail_memory(edgec_session* session) {
  snprintf(session->error, sizeof session->error, "no memory for inputs or outputs");
  return EDGEC_NO_MEMORY;
}

/* Kernels take the nearest row for an index that is in none; a caller has to hear of it. */
static int32_t check_indices(edgec_session* session, const edgec_program* program) {
  for (int32_t i = 0; i < program->input_count; ++i) {
    const int64_t rows = program->index_bounds[i];
    if (!rows) continue;
    const edgec_tensor* input = &program->inputs[i];
    const int narrow = !strcmp(input->dtype, "int32");
    const size_t count = input->bytes / (narrow ? sizeof(int32_t) : sizeof(int64_t));
    for (size_t n = 0; n < count; ++n) {
      const int64_t index = narrow ? ((const int32_t*)session->inputs[i])[n]
                                   : ((const int64_t*)session->inputs[i])[n];
      if (index >= -rows && index < rows) continue;
      snprintf(session->error, sizeof session->error,
               "input %.100s holds the index %" PRId64 "; it chooses from %" PRId64
               " rows, so %" PRId64 " to %" PRId64 " are expected",
               input->name, index, rows, -rows, rows - 1);
      return EDGEC_BAD_INDEX;
    }
  }
  return 0;
}

/* What the run wrote beside a state becomes the state. */
static void swap_states(edgec_session* session, const edgec_part* part) {
  for (int32_t s = part->swap; s < part->swap + part->swap_count; ++s) {
    const size_t number = (size_t)edgec_swaps[s];
    if (model.state_parts > 1) {
      /* Other parts of the state stay where they are. */
      memcpy(state_side(session, 2 * number), state_side(session, 2 * number + 1),
             kept_bytes(session, number));
      continue;
    }
    unsigned char** sides = &session->states[2 * number];
    unsigned char* now = sides[1];
    sides[1] = sides[0];
    sides[0] = now;
  }
}

int32_t run_part(edgec_session* session, int32_t number, int32_t state_part,
                 const void* const* inputs, void* const* outputs, uint64_t* nanoseconds) {
  const edgec_program* program = &model.programs[number];
  const edgec_part* part = &edgec_parts[number];
  if (state_part < 0 || state_part >= part->state_parts) {
    snprintf(session->error, sizeof session->error,
             "program %.100s has %" PRId32 " parts of the state; part %" PRId32 " is none",
             program->name, part->state_parts, state_part);
    return EDGEC_NO_PART;
  }
  session->part = state_part;
  session->parts = part->state_parts;
  void** staged_inputs = session->staged_inputs + (program->inputs - edgec_inputs);
  void** staged_outputs = session->staged_outputs + (program->outputs - edgec_outputs);
  pool_own(session->pool);
  session->error[0] = 0;
  for (int32_t i = 0; i < program->input_count; ++i) {
    void* memory = stage(&staged_inputs[i], inputs[i], program->inputs[i].bytes);
    if (!memory) return fail_memory(session);
    if (memory != inputs[i]) memcpy(memory, inputs[i], program->inputs[i].bytes);
    session->inputs[i] = memory;
  }
  for (int32_t i = 0; i < program->output_count; ++i) {
    session->outputs[i] = stage(&staged_outputs[i], outputs[i], program->outputs[i].bytes);
    if (!session->outputs[i]) return fail_memory(session);
  }
  if (check_indices(session, program)) return EDGEC_BAD_INDEX;
  begin_steps(session, number, nanoseconds);
  pool_run(session->pool);
  for (int32_t c = part->copy; c < part->copy + part->copy_count; ++c) {
    const edgec_copy* copy = &edgec_copies[c];
    memcpy(resolve(session, copy->to), resolve(session, copy->from), copy->bytes);
  }
  swap_states(session, part);
  for (int32_t i = 0; i < program->output_count; ++i)
    if (session->outputs[i] != outputs[i])
      memcpy(outputs[i], session->outputs[i], program->outputs[i].bytes);
  return 0;
}

int32_t run_program(edgec_session* session, int32_t number, const void* const* inputs,
                    void* const* outputs, uint64_t* nanoseconds) {
  return run_part(session, number, 0, inputs, outputs, nanoseconds);
}

int32_t run(edgec_session* session, const void* const* inputs, void* const* outputs) {
  return run_program(session, 0, inputs, outputs, NULL);
}

int32_t run_timed(edgec_session* session, const void* const* inputs, void* const* outputs,
                  uint64_t* nanoseconds) {
  return run_program(session, 0, inputs, outputs, nanoseconds);
}

int32_t session_threads(const edgec_session* session) { return pool_threads(session->pool); }

int32_t use_threads(edgec_session* session, int32_t threads) {
  pool_own(session->pool);
  return pool_use(session->pool, threads);
}

const char* last_error(const edgec_session* session) { return session->error; }

const edgec_model* edgec_loaded_model(void) { return &model; }

/* Code that TVM generates asks here for temporaries that are too large for the stack. It calls
 * through these two variables, of which it has weak definitions of its own. */
static void* allocate_workspace(int device, int number, uint64_t bytes, int code, int bits) {
  (void)device, (void)number, (void)code, (void)bits;
  return allocate((size_t)bytes);
}

static int free_workspace(int device, int number, void* memory) {
  (void)device, (void)number;
  free(memory);
  return 0;
}

void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate_workspace;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = free_workspace;
