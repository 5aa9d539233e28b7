/* How long each variant takes on this machine, on how many threads. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#include <time.h>

#include "governor.h"

enum { ROUNDS = 9 };

static double clock_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e3 + (double)time.tv_nsec * 1e-6;
}

static int ascending(const void* left, const void* right) {
  const double a = *(const double*)left, b = *(const double*)right;
  return (a > b) - (a < b);
}

int32_t edgec_race(const edgec_model* model, edgec_session* session,
                   const void* const* const* inputs, void* const* const* outputs,
                   const double* accuracies, edgec_option* options, int32_t most) {
  const int32_t all = model->threads(session);
  int32_t count = 0;
  for (int32_t threads = 1; threads <= all; threads = threads < all && 2 * threads > all ? all : 2 * threads)
    for (int32_t program = 0; program < model->program_count && count < most; ++program)
      options[count++] = (edgec_option){program, threads, accuracies[program], 0};
  double(*times)[ROUNDS] = calloc((size_t)count + 1, sizeof *times);
  if (!times) return -1;
  /* The first round warms up. */
  for (int32_t round = -1; round < ROUNDS; ++round)
    for (int32_t i = 0; i < count; ++i) {
      const int32_t program = options[i].program;
      model->use_threads(session, options[i].threads);
      model->reset(session);
      const double began = clock_ms();
      if (model->run_program(session, program, inputs[program], outputs[program], NULL)) {
        free(times);
        return -1;
      }
      if (round >= 0) times[i][round] = clock_ms() - began;
    }
  for (int32_t i = 0; i < count; ++i) {
    qsort(times[i], ROUNDS, sizeof(double), ascending);
    options[i].latency_ms = times[i][ROUNDS / 2];
  }
  free(times);
  model->use_threads(session, 0);
  return count;
}
