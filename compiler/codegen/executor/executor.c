/* Runs the program of a model: one kernel after the other, over inputs, outputs, weights and one
 * arena. See edgec.h for what a caller needs to know. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct edgec_session {
  edgec_pool* pool;
  unsigned char* arena;
  /* Aligned copies of inputs and outputs whose memory is not aligned. */
  void** staged_inputs;
  void** staged_outputs;
  const void** inputs;
  void** outputs;
  /* Of the step that runs. */
  int32_t step;
  const edgec_buffer* places; /* of the next step's buffers */
  void** buffers;
  uint64_t* nanoseconds; /* that each step took, if anybody wants to know */
  uint64_t began_ns;
  char error[256]; /* of the last run */
};

edgec_step_info step_info(int32_t index) {
  const char* label = edgec_texts;
  for (int32_t passed = 2 * index; passed; --passed) label += strlen(label) + 1;
  return (edgec_step_info){label, label + strlen(label) + 1, edgec_steps[index].flops};
}

static void* allocate(size_t bytes) {
  void* memory = NULL;
  return posix_memalign(&memory, EDGEC_ALIGNMENT, bytes ? bytes : 1) ? NULL : memory;
}

void session_close(edgec_session* session) {
  if (!session) return;
  pool_close(session->pool);
  free(session->arena);
  for (int32_t i = 0; session->staged_inputs && i < model.input_count; ++i)
    free(session->staged_inputs[i]);
  for (int32_t i = 0; session->staged_outputs && i < model.output_count; ++i)
    free(session->staged_outputs[i]);
  free(session->staged_inputs);
  free(session->staged_outputs);
  free(session->inputs);
  free(session->outputs);
  free(session->buffers);
  free(session);
}

edgec_session* session_open(int32_t threads) {
  edgec_session* session = calloc(1, sizeof *session);
  if (!session) return NULL;
  session->pool = pool_open(session, threads);
  session->arena = allocate(model.arena_bytes);
  session->staged_inputs = calloc((size_t)model.input_count + 1, sizeof(void*));
  session->staged_outputs = calloc((size_t)model.output_count + 1, sizeof(void*));
  session->inputs = calloc((size_t)model.input_count + 1, sizeof(void*));
  session->outputs = calloc((size_t)model.output_count + 1, sizeof(void*));
  session->buffers = calloc((size_t)edgec_most_buffers + 1, sizeof(void*));
  if (!session->pool || !session->arena || !session->buffers || !session->staged_inputs ||
      !session->staged_outputs || !session->inputs || !session->outputs) {
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

static void* resolve(const edgec_session* session, edgec_buffer buffer) {
  const size_t value = buffer >> 2;
  switch (buffer & 3) {
    case EDGEC_INPUT: return (void*)session->inputs[value];
    case EDGEC_OUTPUT: return session->outputs[value];
    case EDGEC_WEIGHT: return (void*)(edgec_weights + value * EDGEC_UNIT);
    default: return session->arena + value * EDGEC_UNIT;
  }
}

static void begin_steps(edgec_session* session, uint64_t* nanoseconds) {
  session->step = -1;
  session->places = edgec_buffers;
  session->nanoseconds = nanoseconds;
  if (nanoseconds) session->began_ns = now_ns();
}

static const edgec_step_entry* next_step(edgec_session* session) {
  if (session->nanoseconds && session->step >= 0) {
    const uint64_t now = now_ns();
    session->nanoseconds[session->step] = now - session->began_ns;
    session->began_ns = now;
  }
  if (++session->step == model.step_count) return NULL;
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
static int32_t check_indices(edgec_session* session) {
  for (int32_t i = 0; i < model.input_count; ++i) {
    const int64_t rows = edgec_index_bounds[i];
    if (!rows) continue;
    const int narrow = !strcmp(edgec_inputs[i].dtype, "int32");
    const size_t count = edgec_inputs[i].bytes / (narrow ? sizeof(int32_t) : sizeof(int64_t));
    for (size_t n = 0; n < count; ++n) {
      const int64_t index = narrow ? ((const int32_t*)session->inputs[i])[n]
                                   : ((const int64_t*)session->inputs[i])[n];
      if (index >= -rows && index < rows) continue;
      snprintf(session->error, sizeof session->error,
               "input %.100s holds the index %" PRId64 "; it chooses from %" PRId64
               " rows, so %" PRId64 " to %" PRId64 " are expected",
               edgec_inputs[i].name, index, rows, -rows, rows - 1);
      return EDGEC_BAD_INDEX;
    }
  }
  return 0;
}

int32_t run_timed(edgec_session* session, const void* const* inputs, void* const* outputs,
                  uint64_t* nanoseconds) {
  pool_own(session->pool);
  session->error[0] = 0;
  for (int32_t i = 0; i < model.input_count; ++i) {
    void* memory = stage(&session->staged_inputs[i], inputs[i], edgec_inputs[i].bytes);
    if (!memory) return fail_memory(session);
    if (memory != inputs[i]) memcpy(memory, inputs[i], edgec_inputs[i].bytes);
    session->inputs[i] = memory;
  }
  for (int32_t i = 0; i < model.output_count; ++i) {
    session->outputs[i] = stage(&session->staged_outputs[i], outputs[i], edgec_outputs[i].bytes);
    if (!session->outputs[i]) return fail_memory(session);
  }
  if (check_indices(session)) return EDGEC_BAD_INDEX;
  begin_steps(session, nanoseconds);
  pool_run(session->pool);
  for (int32_t c = 0; c < edgec_copy_count; ++c) {
    const edgec_copy* copy = &edgec_copies[c];
    memcpy(session->outputs[copy->output], resolve(session, copy->from),
           edgec_outputs[copy->output].bytes);
  }
  for (int32_t i = 0; i < model.output_count; ++i)
    if (session->outputs[i] != outputs[i])
      memcpy(outputs[i], session->outputs[i], edgec_outputs[i].bytes);
  return 0;
}

int32_t run(edgec_session* session, const void* const* inputs, void* const* outputs) {
  return run_timed(session, inputs, outputs, NULL);
}

int32_t session_threads(const edgec_session* session) { return pool_threads(session->pool); }

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
