/* The tables that edgec writes for each model, and what the executor's parts know of each other. */
#ifndef EDGEC_PROGRAM_H
#define EDGEC_PROGRAM_H

#include "edgec.h"

#define EDGEC_ALIGNMENT 64

/* Where a buffer is. */
typedef enum { EDGEC_INPUT, EDGEC_OUTPUT, EDGEC_WEIGHT, EDGEC_ARENA } edgec_place;

typedef struct {
  edgec_place place;
  uint32_t index;  /* input or output number */
  uint64_t offset; /* bytes into the weights or the arena */
} edgec_buffer;

/* Tasks begin to end - 1 of a kernel; the buffers are its arguments in order. */
typedef void (*edgec_kernel)(void* const* buffers, int32_t begin, int32_t end);

typedef struct {
  edgec_step_info info;
  edgec_kernel kernel;
  int32_t tasks;
  int32_t grain; /* tasks that one thread takes at a time; as many as there are: do not share */
  int32_t buffer_count;
  const edgec_buffer* buffers;
} edgec_step_entry;

/* An output that no kernel writes. */
typedef struct {
  edgec_buffer from;
  uint32_t output;
} edgec_copy;

typedef struct {
  int32_t input_count, output_count, step_count, copy_count;
  int32_t most_buffers; /* of one kernel */
  const edgec_tensor* inputs;
  const edgec_tensor* outputs;
  const edgec_step_entry* steps;
  const edgec_copy* copies;
  const unsigned char* weights;
  size_t arena_bytes;
} edgec_program;

extern const edgec_program edgec_the_program;

/* Threads: a pool that hands out the tasks of one step at a time. */
typedef struct edgec_pool edgec_pool;
edgec_pool* edgec_pool_open(int32_t threads);
void edgec_pool_close(edgec_pool* pool);
int32_t edgec_pool_threads(const edgec_pool* pool);
void edgec_pool_run(edgec_pool* pool, const edgec_step_entry* step, void* const* buffers);

#endif
