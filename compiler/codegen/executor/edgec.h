/* Run a model that edgec compiled. The library that exports these functions needs nothing but
 * the C library.
 *
 *     edgec_session* session = edgec_open(4);
 *     const void* inputs[] = {image};
 *     void* outputs[] = {scores};
 *     edgec_run(session, inputs, outputs);
 *     edgec_close(session);
 *
 * A session is used by one thread at a time; any number of sessions may run at once. */
#ifndef EDGEC_H
#define EDGEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGEC_ABI 1

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

/* Version of this interface. */
int32_t edgec_abi(void);

/* What the model takes and gives. */
int32_t edgec_input_count(void);
int32_t edgec_output_count(void);
const edgec_tensor* edgec_input(int32_t index);
const edgec_tensor* edgec_output(int32_t index);

/* Bytes that a session needs for values between the input and the output. */
size_t edgec_arena_bytes(void);

/* A session that computes on `threads` threads, the calling one among them; 0 means one for each
 * core. NULL if memory or threads are not to be had. */
edgec_session* edgec_open(int32_t threads);
void edgec_close(edgec_session* session);
int32_t edgec_threads(const edgec_session* session);

/* Run once. Inputs and outputs are dense and row-major, in the order and of the sizes stated above.
 * Memory aligned to 64 bytes is used in place, other memory is copied. 0 on success. */
int32_t edgec_run(edgec_session* session, const void* const* inputs, void* const* outputs);

/* The same, and the time that each step took in nanoseconds. */
int32_t edgec_run_timed(edgec_session* session, const void* const* inputs, void* const* outputs,
                        uint64_t* nanoseconds);
int32_t edgec_step_count(void);
edgec_step_info edgec_step(int32_t index);

#ifdef __cplusplus
}
#endif

#endif
