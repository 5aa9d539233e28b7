/* The tables that edgec writes for each model, and what the executor's parts know of each other.
 * The tables hold no addresses: what a dynamic loader has to correct costs more bytes than most
 * kernels' tables. */
#ifndef EDGEC_PROGRAM_H
#define EDGEC_PROGRAM_H

#include "edgec.h"

#define EDGEC_ALIGNMENT 64
#define EDGEC_SAVED_HEADER 64 /* bytes before the values of a saved state */

/* Where a buffer is. */
typedef enum { EDGEC_INPUT, EDGEC_OUTPUT, EDGEC_WEIGHT, EDGEC_ARENA, EDGEC_STATE } edgec_place;

/* A place, and the number of an input or output, or units of bytes into the weights or the arena;
 * of state n the number 2 n, and 2 n + 1 for the values that it has after the run. */
typedef uint32_t edgec_buffer;
#define EDGEC_UNIT 16
#define EDGEC_BUFFER(place, value) ((place) | (uint32_t)(value) << 3)

typedef struct {
  int64_t flops;
  int32_t kernel; /* number */
  int32_t tasks;
  int32_t grain; /* tasks that one thread takes at a time; as many as there are: do not share */
  int32_t buffer_count; /* its buffers follow those of the step before */
} edgec_step_entry;

/* A model has fewer than 2 to this power of them, in all programs together. */
#define EDGEC_STEP_BITS 20

/* An output, or the next values of a state, that no kernel writes. */
typedef struct {
  edgec_buffer from, to;
  uint64_t bytes;
} edgec_copy;

/* A step whose last buffer holds one int32: if that is not 0, the steps before `next` are left out,
 * and so many buffers with them. */
typedef struct {
  int32_t step, next;
  int32_t skipped_buffers;
} edgec_exit;

/* Where a program's part of the tables begins. */
typedef struct {
  int32_t step, buffer;
  int32_t copy, copy_count;
  int32_t swap, swap_count;
  int32_t state_parts; /* into how many the states are cut: it runs on one of them */
} edgec_part;

#pragma GCC visibility push(hidden)

/* In program.c: the tables of all programs, how long they are, and the call of a kernel by its number
 * of buffers. */
extern const edgec_tensor edgec_inputs[], edgec_outputs[], edgec_states[];
extern const int64_t edgec_index_bounds[];
extern const edgec_part edgec_parts[]; /* of each program */
extern const char edgec_texts[];
extern const edgec_buffer edgec_buffers[];
extern const edgec_step_entry edgec_steps[];
extern const edgec_copy edgec_copies[];
extern const edgec_exit edgec_exits[]; /* by step; the last one is of no step */
extern const int32_t edgec_swaps[]; /* states whose values a program writes elsewhere */
extern const edgec_model model;
extern const int32_t edgec_input_count, edgec_output_count, edgec_step_count;
extern const int32_t edgec_most_buffers; /* of one kernel */
extern const unsigned char edgec_digest[32]; /* of the model, for its saved state */
void call_kernel(const edgec_step_entry* step, void* const* buffers, int32_t begin, int32_t end);

/* In constants.S: the weights, and how far from this table the code of each kernel is. */
extern const unsigned char edgec_weights[];
extern const int32_t edgec_kernels[];

/* In executor.c: what a model's table leads to. */
edgec_session* session_open(int32_t threads);
void session_close(edgec_session* session);
int32_t session_threads(const edgec_session* session);
int32_t use_threads(edgec_session* session, int32_t threads);
int32_t run(edgec_session* session, const void* const* inputs, void* const* outputs);
int32_t run_timed(edgec_session* session, const void* const* inputs, void* const* outputs,
                  uint64_t* nanoseconds);
edgec_step_info step_info(int32_t index);
const char* last_error(const edgec_session* session);
int32_t run_program(edgec_session* session, int32_t program, const void* const* inputs,
                    void* const* outputs, uint64_t* nanoseconds);
int32_t run_part(edgec_session* session, int32_t program, int32_t part, const void* const* inputs,
                 void* const* outputs, uint64_t* nanoseconds);
edgec_step_info program_step(int32_t program, int32_t index);
void* state_of(edgec_session* session, int32_t index);
void reset_state(edgec_session* session);
void save_state(const edgec_session* session, void* saved);
int32_t restore_state(edgec_session* session, const void* saved, size_t bytes);

#pragma GCC visibility pop

#endif
