/* How many cores this process may use: those of its affinity, and no more than the CPU quota of
 * its control groups pays for (cgroups of both versions; a quota of 1.5 cores counts as 2). */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef EDGEC_CGROUPS
#define EDGEC_CGROUPS "/sys/fs/cgroup"
#define EDGEC_OWN_CGROUPS "/proc/self/cgroup"
#endif

static int32_t cores_of_affinity(void) {
  /* The system refuses a set that is smaller than its own. */
  for (int32_t most = 1024; most <= 1 << 20; most *= 4) {
    cpu_set_t* set = CPU_ALLOC(most);
    if (!set) break;
    size_t bytes = CPU_ALLOC_SIZE(most);
    int32_t found = sched_getaffinity(0, bytes, set) ? 0 : CPU_COUNT_S(bytes, set);
    CPU_FREE(set);
    if (found > 0) return found;
  }
  return (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
}

/* The numbers of a file, as many as there are of two; "max" is no number. */
static int read_numbers(const char* folder, const char* name, long long numbers[2]) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return 0;
  FILE* file = fopen(path, "r");
  if (!file) return 0;
  int count = fscanf(file, "%lld %lld", &numbers[0], &numbers[1]);
  fclose(file);
  return count < 0 ? 0 : count;
}

/* Cores that a group's quota pays for, at most `least`. */
static int32_t within_quota(const char* folder, int32_t least) {
  long long numbers[2];
  long long quota = 0, period = 0;
  if (read_numbers(folder, "cpu.max", numbers) == 2) {
    quota = numbers[0], period = numbers[1];
  } else if (read_numbers(folder, "cpu.cfs_quota_us", numbers) == 1) {
    quota = numbers[0];
    if (read_numbers(folder, "cpu.cfs_period_us", numbers) == 1) period = numbers[0];
  }
  if (quota <= 0 || period <= 0) return least; /* -1: no limit */
  long long cores = (quota + period - 1) / period;
  return cores < least ? (int32_t)cores : least;
}

/* The same for a group and all that contain it, as far as they are mounted. */
static int32_t within_quotas(const char* mount, const char* group, int32_t least) {
  char folder[4096];
  if (snprintf(folder, sizeof folder, "%s%s", mount, group) >= (int)sizeof folder) return least;
  const size_t root = strlen(mount);
  for (;;) {
    least = within_quota(folder, least);
    char* slash = strrchr(folder + root, '/');
    if (!slash) return least;
    *slash = 0;
  }
}

/* Whether a list of names that are separated by commas holds "cpu". */
static int controls_cpu(const char* controllers) {
  for (const char* name = controllers; name; name = strchr(name, ',')) {
    if (*name == ',') ++name;
    if (!strncmp(name, "cpu", 3) && (!name[3] || name[3] == ',')) return 1;
  }
  return 0;
}

static int32_t usable_cores(void) {
  int32_t cores = cores_of_affinity();
  FILE* file = fopen(EDGEC_OWN_CGROUPS, "r");
  char line[4096];
  /* Number, controllers, group: "0::/a/b" of version 2, "3:cpu,cpuacct:/a/b" of version 1. */
  while (file && fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    char* controllers = strchr(line, ':');
    char* group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group) continue;
    *group++ = 0;
    ++controllers;
    if (!*controllers) {
      cores = within_quotas(EDGEC_CGROUPS, group, cores);
    } else if (controls_cpu(controllers)) {
      char mount[512];
      snprintf(mount, sizeof mount, EDGEC_CGROUPS "/%s", controllers);
      cores = within_quotas(mount, group, cores);
      cores = within_quotas(EDGEC_CGROUPS "/cpu", group, cores);
    }
  }
  if (file) fclose(file);
  return cores < 1 ? 1 : cores;
}
