#define _GNU_SOURCE
#include "signature.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "monocypher-ed25519.h"

#define HEAD "edgec signature 1\n"
enum { FOLDER_DEPTH = 16, DIGEST_DIGITS = 64, SIGNATURE_DIGITS = 128, SIZE_DIGITS = 15 };

/* ---- the text ---- */

static int is_path_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* NAME or NAME/NAME…: such a path stays in the bundle. */
static int is_path(const char* path) {
  size_t length = strlen(path);
  if (!length || length > SIGNATURE_PATH_BYTES || path[length - 1] == '/') return 0;
  for (size_t i = 0; i < length; ++i) {
    int first = i == 0 || path[i - 1] == '/';
    int other = !first && (path[i] == '.' || path[i] == '-' || path[i] == '/');
    if (!is_path_byte(path[i]) && !other) return 0;
  }
  return 1;
}

/* A size as Python writes it; the byte behind it, or NULL. */
static char* read_size(char* text, uint64_t* value) {
  char* next = text;
  for (*value = 0; *next >= '0' && *next <= '9' && next - text < SIZE_DIGITS; ++next)
    *value = *value * 10 + (uint64_t)(*next - '0');
  return next == text || (*text == '0' && next != text + 1) ? NULL : next;
}

/* "sha256 DIGEST SIZE PATH"; the line end was made a zero byte. */
static int read_file_line(char* line, signed_file* file) {
  static const char word[] = "sha256 ";
  if (strlen(line) < sizeof word - 1 + DIGEST_DIGITS + 1) return -1;
  char* next = line + sizeof word - 1;
  if (memcmp(line, word, sizeof word - 1) || trust_from_hex(next, file->digest, 32)) return -1;
  next += DIGEST_DIGITS;
  if (*next++ != ' ' || !(next = read_size(next, &file->bytes)) || *next++ != ' ') return -1;
  file->path = next;
  return is_path(next) && strcmp(next, SIGNATURE_FILE) ? 0 : -1;
}

/* "ed25519 KEY SIGNATURE" */
static int read_key_line(const char* line, uint8_t key[32], uint8_t made[64]) {
  static const char word[] = "ed25519 ";
  if (strlen(line) != sizeof word - 1 + DIGEST_DIGITS + 1 + SIGNATURE_DIGITS) return -1;
  const char* next = line + sizeof word - 1;
  if (memcmp(line, word, sizeof word - 1) || trust_from_hex(next, key, 32)) return -1;
  next += DIGEST_DIGITS;
  return *next != ' ' || trust_from_hex(next + 1, made, 64) ? -1 : 0;
}

static int count_lines(const char* text) {
  int lines = 0;
  for (; *text; ++text) lines += *text == '\n';
  return lines;
}

static int damaged(const char* bundle, trust_message* message) {
  return trust_fail(message, TRUST_REFUSED,
                    "bundle %s: " SIGNATURE_FILE
                    " is damaged, or of a format that this program does not know; get the bundle "
                    "again",
                    bundle);
}

void signature_key_text(const uint8_t key[32], char text[73]) {
  memcpy(text, "ed25519:", 8);
  trust_to_hex(key, 32, text + 8);
}

/* Every key's line, against the bytes that are signed. */
static int read_keys(char* lines, const char* message_text, size_t message_bytes,
                     const char* bundle, signature* result, trust_message* message) {
  uint8_t made[64];
  char text[73];
  for (char *line = lines, *end; *line; line = end + 1) {
    if (!(end = strchr(line, '\n')) || result->key_count == SIGNATURE_KEYS)
      return damaged(bundle, message);
    *end = 0;
    uint8_t* key = result->keys[result->key_count];
    if (read_key_line(line, key, made)) return damaged(bundle, message);
    if (result->key_count && memcmp(key - 32, key, 32) >= 0) return damaged(bundle, message);
    ++result->key_count;
    if (crypto_ed25519_check(made, key, (const uint8_t*)message_text, message_bytes)) {
      signature_key_text(key, text);
      return trust_fail(message, TRUST_REFUSED,
                        "bundle %s: its signature is not one by key %s: " SIGNATURE_FILE
                        " was changed; get the bundle again",
                        bundle, text);
    }
  }
  return result->key_count ? TRUST_OK : damaged(bundle, message);
}

int signature_parse(char* text, size_t bytes, const char* bundle, signature* result,
                    trust_message* message) {
  memset(result, 0, sizeof *result);
  result->text = text;
  if (bytes > SIGNATURE_BYTES || strlen(text) != bytes || strncmp(text, HEAD, sizeof HEAD - 1))
    return damaged(bundle, message);
  char* files = text + sizeof HEAD - 1;
  char* keys = strncmp(files, "ed25519 ", 8) ? strstr(files, "\ned25519 ") : files - 1;
  if (!keys) return damaged(bundle, message);
  ++keys;
  /* Before the line ends below become zero bytes. */
  int code = read_keys(keys, text, (size_t)(keys - text), bundle, result, message);
  if (code) return code;
  *keys = 0;
  result->files = calloc((size_t)count_lines(files) + 1, sizeof *result->files);
  if (!result->files) return trust_fail(message, TRUST_BAD_INPUT, "no memory");
  for (char *line = files, *end; *line; line = end + 1) {
    signed_file* file = &result->files[result->file_count];
    end = strchr(line, '\n');
    *end = 0;
    if (read_file_line(line, file)) return damaged(bundle, message);
    if (result->file_count && strcmp(file[-1].path, file->path) >= 0)
      return damaged(bundle, message);
    ++result->file_count;
  }
  return TRUST_OK;
}

void signature_free(signature* result) {
  free(result->text);
  free(result->files);
  memset(result, 0, sizeof *result);
}

int signature_read(const char* bundle, signature* result, trust_message* message) {
  char path[TRUST_PATH_BYTES];
  struct stat status;
  size_t bytes;
  memset(result, 0, sizeof *result);
  if (trust_join(bundle, SIGNATURE_FILE, path))
    return trust_fail(message, TRUST_BAD_INPUT, "the path of the bundle is too long");
  if (lstat(path, &status)) {
    if (errno == ENOENT) return TRUST_OK;
    return trust_fail(message, TRUST_REFUSED, "cannot read %s: %s", path, strerror(errno));
  }
  if (!S_ISREG(status.st_mode))
    return trust_fail(message, TRUST_REFUSED, "bundle %s: " SIGNATURE_FILE " is no file", bundle);
  char* text = trust_read_file(path, SIGNATURE_BYTES, &bytes);
  if (!text) return damaged(bundle, message);
  int code = signature_parse(text, bytes, bundle, result, message);
  if (code) signature_free(result);
  return code;
}

/* ---- the files ---- */

static int by_path(const void* left, const void* right) {
  return strcmp(((const signed_file*)left)->path, ((const signed_file*)right)->path);
}

const signed_file* signature_find(const signature* signed_by, const char* path) {
  signed_file wanted = {.path = path};
  if (!signed_by->file_count) return NULL;
  return bsearch(&wanted, signed_by->files, signed_by->file_count, sizeof wanted, by_path);
}

static int refuse(const char* bundle, const signature* signed_by, const char* what,
                  const char* path, trust_message* message) {
  char key[73];
  signature_key_text(signed_by->keys[0], key);
  return trust_fail(message, TRUST_REFUSED, "bundle %s: %s %s (signed by key %s)", bundle, path,
                    what, key);
}

/* Look for what was not signed in a folder of the bundle, `inner` from its root. */
static int find_extra(const char* bundle, const char* inner, int depth, const signature* signed_by,
                      trust_message* message) {
  char folder[TRUST_PATH_BYTES], path[TRUST_PATH_BYTES], full[TRUST_PATH_BYTES];
  struct stat status;
  int code = TRUST_OK;
  DIR* entries = NULL;
  if (depth < FOLDER_DEPTH && !trust_join(bundle, inner, folder)) entries = opendir(folder);
  if (!entries)
    return refuse(bundle, signed_by, "is a folder that cannot be read", inner, message);
  for (struct dirent* entry; !code && (entry = readdir(entries));) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    if (trust_join(inner, entry->d_name, path) || trust_join(bundle, path, full) ||
        lstat(full, &status))
      code = refuse(bundle, signed_by, "cannot be read", entry->d_name, message);
    else if (S_ISDIR(status.st_mode))
      code = find_extra(bundle, path, depth + 1, signed_by, message);
    else if (strcmp(path, SIGNATURE_FILE) && !signature_find(signed_by, path))
      code = refuse(bundle, signed_by, "is an extra file that was not signed; remove it", path,
                    message);
  }
  closedir(entries);
  return code;
}

/* Whether a file is the one that was signed; -1 if there is none. */
static int is_as_signed(const char* path, const signed_file* expected, int content) {
  static uint8_t chunk[1 << 16];
  uint8_t digest[32];
  uint64_t bytes;
  sha256 hash;
  int file = trust_open_file(path, &bytes);
  if (file < 0) return -1;
  int same = bytes == expected->bytes;
  sha256_init(&hash);
  while (content && same && bytes) {
    size_t part = bytes < sizeof chunk ? (size_t)bytes : sizeof chunk;
    same = !trust_read(file, chunk, part);
    if (same) sha256_update(&hash, chunk, part);
    bytes -= part;
  }
  close(file);
  sha256_final(&hash, digest);
  return same && (!content || !memcmp(digest, expected->digest, sizeof digest));
}

int signature_compare(const char* bundle, const signature* signed_by, const char* but,
                      trust_message* message) {
  char path[TRUST_PATH_BYTES];
  int code = find_extra(bundle, "", 0, signed_by, message);
  for (size_t i = 0; !code && i < signed_by->file_count; ++i) {
    const signed_file* file = &signed_by->files[i];
    int content = !but || strcmp(file->path, but);
    int same = trust_join(bundle, file->path, path) ? -1 : is_as_signed(path, file, content);
    if (same < 0)
      code = refuse(bundle, signed_by, "is missing; get the bundle again", file->path, message);
    else if (!same)
      code = refuse(bundle, signed_by, "is not the file that was signed; get the bundle again",
                    file->path, message);
  }
  return code;
}
