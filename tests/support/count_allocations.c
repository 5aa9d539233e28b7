/* Prints how often the governor allocates: when it is opened, and in many choices and switches. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

static long allocations;

static void* counted_calloc(size_t count, size_t bytes) {
  ++allocations;
  return calloc(count, bytes);
}

static void* counted_malloc(size_t bytes) {
  ++allocations;
  return malloc(bytes);
}

static void* counted_realloc(void* memory, size_t bytes) {
  ++allocations;
  return realloc(memory, bytes);
}

#define calloc counted_calloc
#define malloc counted_malloc
#define realloc counted_realloc
#include "governor.c"
#include "signals.c"

int main(void) {
  const edgec_option options[] = {{0, 1, 0.9, 5}, {1, 1, 1.0, 12}};
  const edgec_governor_settings settings = {.deadline_ms = 20};
  edgec_governor* governor = edgec_governor_open(options, 2, &settings);
  edgec_signal_files* files = edgec_signals_open("/sys", "/proc");
  const long opened = allocations;
  double now = 0;
  for (int32_t i = 0; i < 20000; ++i, now += 33) {
    const edgec_signals signals = edgec_signals_read(files);
    edgec_governor_note(governor, now, &signals);
    const int32_t option = edgec_governor_choose(governor, now);
    edgec_governor_observe(governor, now, options[option].latency_ms * (i % 2000 < 1000 ? 1 : 2));
  }
  printf("%ld %ld %ld\n", opened, allocations - opened,
         (long)edgec_governor_reported(governor).switches);
  edgec_governor_close(governor);
  edgec_signals_close(files);
  return 0;
}
