/* Run a model that edgec compiled. The library of a model needs nothing but the C library.
 *
 *     const edgec_model* model = edgec_model_NAME();
 *     edgec_session* session = model->open(4);
 *     const void* inputs[] = {image};
 *     void* outputs[] = {scores};
 *     model->run(session, inputs, outputs);
 *     model->close(session);
 *
 * NAME is the model's; any number of models may be linked into one program. A session is used by
 * one thread at a time; any number of sessions may run at once, and share the weights. A session
 * that was open when the process forked may be used by the parent and by the child. */
#ifndef EDGEC_H
#define EDGEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGEC_ABI 5

/* What `run` and `restore` give: 0, or why they did nothing. */
enum { EDGEC_NO_MEMORY = -1, EDGEC_BAD_INDEX = -2, EDGEC_OTHER_STATE = -3 };

typedef struct edgec_session edgec_session;

typedef struct {
  const char* name;
  const char* dtype; /* as NumPy spells it: float32, int64, ... */
  int32_t rank;
  const int64_t* shape;
  size_t bytes;
} edgec_tensor;

typedef struct {
  const char* label;    /* operators of the model */
  const char* template_; /* which kernel template computes them */
  int64_t flops;
} edgec_step_info;

/* A program of a model: the model for one set of shapes. Programs of one model share its weights,
 * and in a session its state. */
typedef struct {
  const char* name;
  int32_t input_count, output_count;
  const edgec_tensor* inputs;
  const edgec_tensor* outputs;
  const int64_t* index_bounds; /* see below */
  int32_t step_count;
} edgec_program;

typedef struct {
  int32_t abi; /* version of this interface: EDGEC_ABI */

  /* What the model takes and gives. */
  int32_t input_count, output_count;
  const edgec_tensor* inputs;
  const edgec_tensor* outputs;

  /* Bytes that a session needs for values between the inputs and the outputs. */
  size_t arena_bytes;

  /* A session that computes on `threads` threads, the calling one among them; 0 means one for
   * each core that this process may use: its affinity and the CPU quota of its cgroup count. NULL
   * if memory or threads are not to be had. */
  edgec_session* (*open)(int32_t threads);
  void (*close)(edgec_session* session);
  int32_t (*threads)(const edgec_session* session);

  /* Run once. Inputs and outputs are dense and row-major, in the order and of the sizes stated
   * above. Memory aligned to 64 bytes is used in place, other memory is copied. 0 on success;
   * EDGEC_BAD_INDEX if an input holds an index that is in no row of its table, see `error`. */
  int32_t (*run)(edgec_session* session, const void* const* inputs, void* const* outputs);

  /* The same, and the time that each of `step_count` steps took in nanoseconds. */
  int32_t (*run_timed)(edgec_session* session, const void* const* inputs, void* const* outputs,
                       uint64_t* nanoseconds);
  int32_t step_count;
  edgec_step_info (*step)(int32_t index);

  /* Of each input the number of rows that it chooses from: it may hold -rows to rows - 1; 0 if it
   * holds no indices. */
  const int64_t* index_bounds;

  /* Why the last run of the session failed, in one line; empty if it did not. Valid until the next
   * run. */
  const char* (*error)(const edgec_session* session);

  /* What is said above of inputs, outputs and steps is said of the first program, which `run` runs.
   * Most models have one. */
  int32_t program_count;
  const edgec_program* programs;

  /* Run any program; `nanoseconds` may be NULL. */
  int32_t (*run_program)(edgec_session* session, int32_t program, const void* const* inputs,
                         void* const* outputs, uint64_t* nanoseconds);
  edgec_step_info (*program_step)(int32_t program, int32_t index);

  /* State: tensors that a session keeps from one run to the next, whichever program is run. They
   * are neither inputs nor outputs, and begin as zeros. */
  int32_t state_count;
  const edgec_tensor* states;

  /* The values of a state, to be read or changed between two runs; the next run may move them. */
  void* (*state)(edgec_session* session, int32_t index);

  /* Begin anew: all state is zeros. */
  void (*reset)(edgec_session* session);

  /* Write all state as `saved_bytes` bytes, and read it again: on any machine, by the same model;
   * EDGEC_OTHER_STATE, and nothing changes, if these bytes are of another one. */
  size_t saved_bytes;
  void (*save)(const edgec_session* session, void* saved);
  int32_t (*restore)(edgec_session* session, const void* saved, size_t bytes);

  /* Compute on so many of the session's threads from the next run on, 0 on all; the number of them.
   * The others sleep. Allocates nothing. */
  int32_t (*use_threads)(edgec_session* session, int32_t threads);
} edgec_model;

/* The model of a library that was loaded by dlopen: every library has this function, so a program
 * that links models calls edgec_model_NAME instead. */
const edgec_model* edgec_loaded_model(void);

#ifdef __cplusplus
}
#endif

#endif
