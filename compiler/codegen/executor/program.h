/* The tables that edgec writes for each model, and what the executor's parts know of each other.
 * Everything is compiled as one file, and the tables hold no addresses: what a dynamic loader has
 * to correct costs more bytes than most kernels' tables. */
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

/* An output that no kernel writes. */
typedef struct {
  edgec_buffer from;
  uint32_t output;
} edgec_copy;

/* Besides the tables there are EDGEC_MODEL, the name of the function that gives the model, the
 * numbers EDGEC_INPUT_COUNT, EDGEC_OUTPUT_COUNT, EDGEC_STEP_COUNT, EDGEC_COPY_COUNT,
 * EDGEC_MOST_BUFFERS (of one kernel) and EDGEC_ARENA_BYTES. */

/* In constants.S: the weights, and how far from this table the code of each kernel is. */
extern const unsigned char edgec_weights[] __attribute__((visibility("hidden")));
extern const int32_t edgec_kernels[] __attribute__((visibility("hidden")));

#endif
