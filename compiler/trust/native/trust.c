#define _GNU_SOURCE
#include "trust.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "policy.h"

#define LIBRARY "model.so"
enum { CHUNK_BYTES = 1 << 20 };

/* A file in memory of so many bytes, and where to write them; -1 if there is no memory. */
static int new_memory_file(uint64_t bytes, uint8_t** memory) {
  int file = memfd_create(LIBRARY, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file < 0) return -1;
  /* posix_fallocate, as a write to memory that is not there would end the program. */
  if (bytes > SIZE_MAX || posix_fallocate(file, 0, (off_t)bytes)) bytes = 0;
  *memory = bytes ? mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                  : MAP_FAILED;
  if (*memory != MAP_FAILED) return file;
  close(file);
  return -1;
}

/* No more changes to a file in memory; and the path to load it from. */
static int seal(int file, uint8_t* memory, uint64_t bytes, char library[TRUST_PATH_BYTES]) {
  munmap(memory, (size_t)bytes);
  snprintf(library, TRUST_PATH_BYTES, "/proc/self/fd/%d", file);
  return fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
}

/* Copy a file to memory, and compare what is there with its digest. */
static int copy_checked(int source, const signed_file* expected, uint8_t* memory) {
  uint8_t digest[32];
  sha256 hash;
  sha256_init(&hash);
  for (uint64_t done = 0; done < expected->bytes;) {
    uint64_t left = expected->bytes - done;
    size_t part = left < CHUNK_BYTES ? (size_t)left : CHUNK_BYTES;
    if (trust_read(source, memory + done, part)) return -1;
    sha256_update(&hash, memory + done, part);
    done += part;
  }
  sha256_final(&hash, digest);
  return memcmp(digest, expected->digest, sizeof digest) ? -1 : 0;
}

static int load_checked(const char* bundle, const signed_file* expected,
                        char library[TRUST_PATH_BYTES], trust_message* message) {
  char path[TRUST_PATH_BYTES];
  uint64_t bytes;
  uint8_t* memory;
  int source = trust_join(bundle, expected->path, path) ? -1 : trust_open_file(path, &bytes);
  int file = source < 0 ? -1 : new_memory_file(expected->bytes, &memory);
  if (file < 0) {
    if (source >= 0) close(source);
    return trust_fail(message, TRUST_BAD_INPUT, "cannot read %s into memory: %s", path,
                      strerror(errno));
  }
  int wrong = bytes != expected->bytes || copy_checked(source, expected, memory);
  close(source);
  if (!seal(file, memory, expected->bytes, library) && !wrong) return TRUST_OK;
  close(file);
  return trust_fail(message, TRUST_REFUSED,
                    "bundle %s: %s is not the file that was signed; get the bundle again", bundle,
                    expected->path);
}

int trust_open_library(const char* bundle, char library[TRUST_PATH_BYTES],
                       trust_message* message) {
  static policy rules;
  signature signed_by;
  int code = policy_read(&rules, message);
  if (code || (code = signature_read(bundle, &signed_by, message))) return code;
  code = policy_check(&rules, bundle, &signed_by, message);
  const signed_file* checked = NULL;
  if (!code && signed_by.text) {
    if (*rules.path) checked = signature_find(&signed_by, LIBRARY);
    code = signature_compare(bundle, &signed_by, checked ? checked->path : NULL, message);
  }
  if (!code && checked)
    code = load_checked(bundle, checked, library, message);
  else if (!code && trust_join(bundle, LIBRARY, library))
    code = trust_fail(message, TRUST_BAD_INPUT, "the path of the bundle is too long");
  if (signed_by.text) signature_free(&signed_by);
  return code;
}
