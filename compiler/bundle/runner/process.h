/* What each part of the runner says and reads of its process. */
#ifndef PROCESS_H
#define PROCESS_H

#include <stdarg.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <time.h>

/* Ends the process, with one line that says why; what was not printed yet is not printed, so nobody
 * reads half of a JSON document. */
_Noreturn static inline void fail(int code, const char* format, ...) {
  va_list arguments;
  __fpurge(stdout);
  va_start(arguments, format);
  fputs("run: error: ", stderr);
  vfprintf(stderr, format, arguments);
  fputs("\n", stderr);
  va_end(arguments);
  exit(code);
}

/* Milliseconds of a clock that is never set. */
static inline double now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e3 + (double)time.tv_nsec * 1e-6;
}

#endif
