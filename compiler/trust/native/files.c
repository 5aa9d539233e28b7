#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int trust_fail(trust_message* message, int code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message->text, sizeof message->text, format, arguments);
  va_end(arguments);
  /* One line, whatever a file is called. */
  for (char* c = message->text; *c; ++c)
    if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
  return code;
}

int trust_join(const char* folder, const char* name, char path[TRUST_PATH_BYTES]) {
  int length = snprintf(path, TRUST_PATH_BYTES, "%s%s%s", folder, *folder ? "/" : "", name);
  return length >= 0 && length < TRUST_PATH_BYTES ? 0 : -1;
}

int trust_open_file(const char* path, uint64_t* bytes) {
  struct stat status;
  /* Not to wait for the other end of a pipe. */
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (file < 0) return -1;
  if (fstat(file, &status) || !S_ISREG(status.st_mode)) {
    close(file);
    return -1;
  }
  *bytes = (uint64_t)status.st_size;
  return file;
}

int trust_read(int file, void* data, size_t bytes) {
  char* next = data;
  while (bytes) {
    ssize_t got = read(file, next, bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return -1;
    next += got, bytes -= (size_t)got;
  }
  return 0;
}

char* trust_read_file(const char* path, size_t most, size_t* bytes) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return NULL;
  /* No more memory than it needs: there may be a limit. Of a pipe nobody knows. */
  struct stat found;
  if (!fstat(file, &found) && S_ISREG(found.st_mode) && (uint64_t)found.st_size < most)
    most = (size_t)found.st_size;
  char* data = malloc(most + 2);
  size_t filled = 0;
  while (data && filled <= most) {
    ssize_t got = read(file, data + filled, most + 1 - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) filled = most + 1;
    if (got <= 0) break;
    filled += (size_t)got;
  }
  close(file);
  if (data && filled > most) {
    free(data);
    return NULL;
  }
  if (data) data[filled] = 0;
  *bytes = filled;
  return data;
}

static int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int trust_from_hex(const char* text, uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    int high = digit(text[2 * i]);
    int low = high < 0 ? -1 : digit(text[2 * i + 1]);
    if (low < 0) return -1;
    data[i] = (uint8_t)(high << 4 | low);
  }
  return 0;
}

void trust_to_hex(const uint8_t* data, size_t bytes, char* text) {
  static const char digits[] = "0123456789abcdef";
  for (size_t i = 0; i < bytes; ++i) {
    *text++ = digits[data[i] >> 4];
    *text++ = digits[data[i] & 15];
  }
  *text = 0;
}
