/* What Linux says of heat, clock, load and battery, in files under /sys and /proc. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "governor.h"

enum { MOST = 64, TEXT = 16384, PATH = 1024 };

/* A number, and what it is compared with. */
typedef struct {
  int file;
  double limit;
} gauge;

struct edgec_signal_files {
  gauge zones[MOST], clocks[MOST];
  int32_t zone_count, clock_count;
  int capacity, status; /* of the battery */
  int stat, own_stat;
  double busy, own, total; /* at the last reading, in ticks of the cores that we may use */
  double others;           /* cores that others kept busy between the last two */
};

static int open_in(const char* folder, const char* name) {
  char path[PATH];
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return -1;
  return open(path, O_RDONLY | O_CLOEXEC);
}

/* The beginning of a file as text; empty if it cannot be read. */
static const char* text_of(int file, char text[TEXT]) {
  const ssize_t bytes = file < 0 ? -1 : pread(file, text, TEXT - 1, 0);
  text[bytes < 0 ? 0 : bytes] = 0;
  return text;
}

static const char* text_in(const char* folder, const char* name, char text[TEXT]) {
  const int file = open_in(folder, name);
  text_of(file, text);
  if (file >= 0) close(file);
  return text;
}

static double number(const char* text) {
  char* end;
  const double value = strtod(text, &end);
  return end == text ? NAN : value;
}

static double number_in(const char* folder, const char* name) {
  char text[TEXT];
  return number(text_in(folder, name, text));
}

/* Where a zone begins to throttle, in thousandths of a degree: its lowest passive trip point. */
static double trip_of(const char* zone) {
  double lowest = NAN;
  for (int point = 0; point < 16; ++point) {
    char name[64], text[TEXT];
    snprintf(name, sizeof name, "trip_point_%d_type", point);
    if (strncmp(text_in(zone, name, text), "passive", 7)) continue;
    snprintf(name, sizeof name, "trip_point_%d_temp", point);
    lowest = fmin(lowest, number_in(zone, name));
  }
  return lowest;
}

static void add(gauge* gauges, int32_t* count, const char* folder, const char* name, double limit) {
  if (*count == MOST || !(limit > 0)) return;
  const int file = open_in(folder, name);
  if (file >= 0) gauges[(*count)++] = (gauge){file, limit};
}

static void add_zone(edgec_signal_files* files, const char* folder) {
  add(files->zones, &files->zone_count, folder, "temp", trip_of(folder));
}

static void add_clock(edgec_signal_files* files, const char* folder) {
  char inner[PATH];
  if (snprintf(inner, sizeof inner, "%s/cpufreq", folder) >= (int)sizeof inner) return;
  add(files->clocks, &files->clock_count, inner, "scaling_cur_freq",
      number_in(inner, "cpuinfo_max_freq"));
}

static void add_battery(edgec_signal_files* files, const char* folder) {
  char text[TEXT];
  if (files->capacity >= 0 || strncmp(text_in(folder, "type", text), "Battery", 7)) return;
  files->capacity = open_in(folder, "capacity");
  files->status = open_in(folder, "status");
}

static void each(edgec_signal_files* files, const char* root, const char* under, const char* prefix,
                 void (*add_one)(edgec_signal_files*, const char*)) {
  char folder[PATH], inner[PATH + 256];
  if (snprintf(folder, sizeof folder, "%s/%s", root, under) >= (int)sizeof folder) return;
  DIR* listed = opendir(folder);
  for (struct dirent* entry; listed && (entry = readdir(listed));)
    if (entry->d_name[0] != '.' && !strncmp(entry->d_name, prefix, strlen(prefix))) {
      snprintf(inner, sizeof inner, "%s/%s", folder, entry->d_name);
      add_one(files, inner);
    }
  if (listed) closedir(listed);
}

edgec_signal_files* edgec_signals_open(const char* sys, const char* proc) {
  edgec_signal_files* files = calloc(1, sizeof *files);
  if (!files) return NULL;
  files->capacity = files->status = -1;
  each(files, sys, "class/thermal", "thermal_zone", add_zone);
  each(files, sys, "devices/system/cpu", "cpu", add_clock);
  each(files, sys, "class/power_supply", "", add_battery);
  files->stat = open_in(proc, "stat");
  files->own_stat = open_in(proc, "self/stat");
  edgec_signals_read(files);
  return files;
}

void edgec_signals_close(edgec_signal_files* files) {
  if (!files) return;
  for (int32_t i = 0; i < files->zone_count; ++i) close(files->zones[i].file);
  for (int32_t i = 0; i < files->clock_count; ++i) close(files->clocks[i].file);
  const int others[] = {files->capacity, files->status, files->stat, files->own_stat};
  for (int i = 0; i < 4; ++i)
    if (others[i] >= 0) close(others[i]);
  free(files);
}

/* Ticks that the cores were busy that this process may use, and all there were; how many cores. */
static int32_t read_stat(int file, double* busy, double* total) {
  char text[TEXT];
  cpu_set_t ours;
  const int any = sched_getaffinity(0, sizeof ours, &ours) != 0; /* more cores than a set holds */
  int32_t cores = 0;
  *busy = *total = 0;
  for (const char* line = text_of(file, text); (line = strstr(line, "\ncpu"));) {
    double ticks[8] = {0};
    int core;
    ++line;
    if (sscanf(line, "cpu%d %lf %lf %lf %lf %lf %lf %lf %lf", &core, &ticks[0], &ticks[1],
               &ticks[2], &ticks[3], &ticks[4], &ticks[5], &ticks[6], &ticks[7]) < 5)
      continue;
    if (!any && (core < 0 || core >= CPU_SETSIZE || !CPU_ISSET(core, &ours))) continue;
    double sum = 0;
    for (int i = 0; i < 8; ++i) sum += ticks[i];
    *total += sum;
    *busy += sum - ticks[3] - ticks[4]; /* idle, and waiting for disks */
    ++cores;
  }
  return cores;
}

/* User and system time of this process: fields 14 and 15, counted after the name in parentheses. */
static double read_own(int file) {
  char text[TEXT];
  const char* field = strrchr(text_of(file, text), ')');
  for (int number = 2; field && number < 14; ++number) field = strchr(field + 1, ' ');
  double user = 0, system = 0;
  return field && sscanf(field, "%lf %lf", &user, &system) == 2 ? user + system : 0;
}

static void read_load(edgec_signal_files* files) {
  double busy, total;
  const int32_t cores = read_stat(files->stat, &busy, &total);
  const double passed = total - files->total;
  if (!cores || passed < 4 * cores) return; /* ticks are coarse: once they say something */
  const double own = read_own(files->own_stat);
  if (files->total > 0)
    files->others = fmax(0, (busy - files->busy - (own - files->own)) / passed * cores);
  files->busy = busy, files->own = own, files->total = total;
}

edgec_signals edgec_signals_read(edgec_signal_files* files) {
  char text[TEXT];
  edgec_signals now = {.to_trip = INFINITY, .clock = 1, .battery = 1};
  for (int32_t i = 0; i < files->zone_count; ++i) {
    const gauge* zone = &files->zones[i];
    now.to_trip = fmin(now.to_trip, (zone->limit - number(text_of(zone->file, text))) / 1000);
  }
  double clock = NAN; /* of the fastest core: idle ones may be slow */
  for (int32_t i = 0; i < files->clock_count; ++i)
    clock = fmax(clock, number(text_of(files->clocks[i].file, text)) / files->clocks[i].limit);
  if (clock > 0) now.clock = fmin(clock, 1);
  if (!strncmp(text_of(files->status, text), "Discharging", 11)) {
    const double left = number(text_of(files->capacity, text)) / 100;
    if (left >= 0) now.battery = left;
  }
  read_load(files);
  now.busy_cores = files->others;
  return now;
}
