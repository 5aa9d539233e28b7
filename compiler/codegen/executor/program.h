/* The tables that edgec writes for each model, and what the executor's parts know of each other.
 * The tables hold no addresses: what a dynamic loader has to correct costs more bytes than most
 * kernels' tables. */
#ifndef EDGEC_PROGRAM_H
#define EDGEC_PROGRAM_H

#include "edgec.h"

#define EDGEC_ALIGNMENT 64

/* Where a buffer is. */
typedef enum { EDGEC_INPUT, EDGEC_OUTPUT, EDGEC_WEIGHT, EDGEC_ARENA } edgec_place;

/* A place, and the number of an input or output, or units of bytes into the weights or the arena. */
typedef uint32_t edgec_buffer;
#define EDGEC_UNIT 16
#define EDGEC_BUFFER(place, value) ((place) | (uint32_t)(value) << 2)

typedef struct {
  int64_t flops;
  int32_t kernel; /* number */
  int32_t tasks;
  int32_t grain; /* tasks that one thread takes at a time; as many as there are: do not share */
  int32_t buffer_count; /* its buffers follow those of the step before */
} edgec_step_entry;

/* A model has fewer than 2 to this power of them. */
#define EDGEC_STEP_BITS 20

/* An output that no kernel writes. */
typedef struct {
  edgec_buffer from;
  uint32_t output;
} edgec_copy;

#pragma GCC visibility push(hidden)

/* In program.c: the tables, how long they are, and the call of a kernel by its number of buffers. */
extern const edgec_tensor edgec_inputs[], edgec_outputs[];
extern const int64_t edgec_index_bounds[];
extern const char edgec_texts[];
extern const edgec_buffer edgec_buffers[];
extern const edgec_step_entry edgec_steps[];
extern const edgec_copy edgec_copies[];
extern const edgec_model model;
extern const int32_t edgec_copy_count, edgec_most_buffers; /* of one kernel */
void call_kernel(const edgec_step_entry* step, void* const* buffers, int32_t begin, int32_t end);

/* In constants.S: the weights, and how far from this table the code of each kernel is. */
extern const unsigned char edgec_weights[];
extern const int32_t edgec_kernels[];

/* In executor.c: what a model's table leads to. */
edgec_session* session_open(int32_t threads);
void session_close(edgec_session* session);
int32_t session_threads(const edgec_session* session);
int32_t run(edgec_session* session, const void* const* inputs, void* const* outputs);
int32_t run_timed(edgec_session* session, const void* const* inputs, void* const* outputs,
                  uint64_t* nanoseconds);
edgec_step_info step_info(int32_t index);
const char* last_error(const edgec_session* session);

#pragma GCC visibility pop

#endif
