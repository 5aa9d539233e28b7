/* What was measured on a machine, kept for the next start. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "governor.h"

enum { NAME = 256, PATH = 4096 };

/* What tells this machine from a copy of its disk in another one. */
static void machine_name(char name[NAME]) {
  struct utsname system;
  char id[64] = "-";
  FILE* file = fopen("/etc/machine-id", "r");
  if (file) {
    if (fscanf(file, "%63s", id) != 1) strcpy(id, "-");
    fclose(file);
  }
  if (uname(&system)) strcpy(system.nodename, "-"), strcpy(system.machine, "-");
  snprintf(name, NAME, "%s/%.80s/%.80s/%ld", id, system.nodename, system.machine,
           sysconf(_SC_NPROCESSORS_CONF));
}

static int is_option(const edgec_option* option) {
  return option->program >= 0 && option->threads >= 1 && option->threads <= 1024 &&
         option->accuracy >= 0 && option->accuracy <= 1 && option->latency_ms > 0 &&
         isfinite(option->latency_ms);
}

int32_t edgec_options_read(const char* path, const char* model, edgec_option* options,
                           int32_t most) {
  char here[NAME], machine[NAME], of[NAME], end[8];
  FILE* file = fopen(path, "r");
  if (!file) return 0;
  machine_name(here);
  int32_t count = 0, passed = 0;
  if (fscanf(file, "machine %255s model %255s", machine, of) == 2 && !strcmp(machine, here) &&
      !strcmp(of, model)) {
    for (edgec_option next; count < most; options[count++] = next)
      if (fscanf(file, " option %d %d %lf %lf", &next.program, &next.threads, &next.accuracy,
                 &next.latency_ms) != 4 ||
          !is_option(&next))
        break;
    passed = fscanf(file, "%7s", end) == 1 && !strcmp(end, "end");
  }
  fclose(file);
  return passed ? count : 0;
}

int edgec_options_write(const char* path, const char* model, const edgec_option* options,
                        int32_t count) {
  char machine[NAME], beside[PATH];
  if (snprintf(beside, sizeof beside, "%s.%ld", path, (long)getpid()) >= (int)sizeof beside)
    return -1;
  FILE* file = fopen(beside, "w");
  if (!file) return -1;
  machine_name(machine);
  fprintf(file, "machine %s\nmodel %s\n", machine, model);
  for (int32_t i = 0; i < count; ++i)
    fprintf(file, "option %d %d %.9g %.9g\n", options[i].program, options[i].threads,
            options[i].accuracy, options[i].latency_ms);
  fputs("end\n", file);
  int failed = fflush(file) || ferror(file) || fsync(fileno(file));
  failed = fclose(file) || failed || rename(beside, path);
  if (failed) unlink(beside);
  return failed ? -1 : 0;
}
