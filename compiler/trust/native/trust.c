#define _GNU_SOURCE
#include "trust.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "age.h"
#include "identity.h"
#include "monocypher.h"
#include "policy.h"

#define LIBRARY "model.so"
#define ENCRYPTED LIBRARY ".age"
enum { CHUNK_BYTES = 1 << 20, SEALED_BYTES = AGE_CHUNK_BYTES + AGE_TAG_BYTES };
enum { WINDOW_CHUNKS = 32, MOST_THREADS = 8 };

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

/* Where a library comes from: its file, and what was signed of it (NULL: anything). */
typedef struct {
  const char* bundle;
  const char* name;
  int file;
  uint64_t bytes;
  const signed_file* expected;
} source;

static int refuse(const source* from, trust_message* message) {
  return trust_fail(message, TRUST_REFUSED,
                    "bundle %s: %s is not the file that was signed; get the bundle again",
                    from->bundle, from->name);
}

static int damaged(const source* from, trust_message* message) {
  return trust_fail(message, TRUST_BAD_INPUT, "bundle %s: %s is damaged; get it again",
                    from->bundle, from->name);
}

static int is_expected(const source* from, sha256* hash) {
  uint8_t digest[32];
  sha256_final(hash, digest);
  return !from->expected || !memcmp(digest, from->expected->digest, sizeof digest);
}

/* Copy a file to memory, and compare what is there with its digest. */
static int copy(const source* from, uint8_t* memory, trust_message* message) {
  sha256 hash;
  sha256_init(&hash);
  for (uint64_t done = 0; done < from->bytes;) {
    uint64_t left = from->bytes - done;
    size_t part = left < CHUNK_BYTES ? (size_t)left : CHUNK_BYTES;
    if (trust_read(from->file, memory + done, part)) return damaged(from, message);
    sha256_update(&hash, memory + done, part);
    done += part;
  }
  return is_expected(from, &hash) ? TRUST_OK : refuse(from, message);
}

/* Threads that decrypt the chunks of a window, while one of them computes the file's digest first.
 * What is decrypted is what was hashed: the file is read once, into memory of this process. */
typedef struct {
  const age_file* opened;
  uint8_t* memory;
  uint8_t* window;
  uint64_t first, count; /* chunks of the window */
  atomic_uint_fast64_t next;
  atomic_int damaged;
  int stop;
  pthread_barrier_t begin, end;
} team;

static void decrypt_window(team* all) {
  uint64_t i;
  while ((i = atomic_fetch_add(&all->next, 1)) < all->count)
    if (age_decrypt(all->opened, all->first + i, all->window + i * SEALED_BYTES,
                    all->memory + (all->first + i) * AGE_CHUNK_BYTES))
      atomic_store(&all->damaged, 1);
}

static void* help(void* context) {
  team* all = context;
  for (;;) {
    pthread_barrier_wait(&all->begin);
    if (all->stop) return NULL;
    decrypt_window(all);
    pthread_barrier_wait(&all->end);
  }
}

/* Read, hash and decrypt window by window; whether something is wrong. */
static int decrypt_windows(const source* from, team* all, sha256* hash) {
  for (; all->first < all->opened->chunks; all->first += all->count) {
    uint64_t left = all->opened->chunks - all->first;
    size_t last;
    all->count = left < WINDOW_CHUNKS ? left : WINDOW_CHUNKS;
    age_chunk_place(all->opened, all->first + all->count - 1, &last);
    size_t bytes = (size_t)(all->count - 1) * SEALED_BYTES + last;
    if (trust_read(from->file, all->window, bytes)) return -1;
    atomic_store(&all->next, 0);
    pthread_barrier_wait(&all->begin);
    if (from->expected) sha256_update(hash, all->window, bytes);
    decrypt_window(all);
    pthread_barrier_wait(&all->end);
    if (atomic_load(&all->damaged)) return -1;
  }
  return 0;
}

/* Threads beside this one. */
static int count_helpers(void) {
  cpu_set_t cores;
  int count = sched_getaffinity(0, sizeof cores, &cores) ? 1 : CPU_COUNT(&cores);
  return (count < MOST_THREADS ? count : MOST_THREADS) - 1;
}

/* Decrypt a file to memory, and compare the file with its digest. */
static int decrypt(const source* from, const age_file* opened, const uint8_t* head,
                   uint8_t* memory, trust_message* message) {
  pthread_t helpers[MOST_THREADS];
  int wanted = opened->chunks > 1 ? count_helpers() : 0, started = 0;
  team all = {.opened = opened, .memory = memory, .window = malloc(WINDOW_CHUNKS * SEALED_BYTES)};
  sha256 hash;
  if (!all.window || pthread_barrier_init(&all.begin, NULL, (unsigned)wanted + 1) ||
      pthread_barrier_init(&all.end, NULL, (unsigned)wanted + 1))
    return trust_fail(message, TRUST_BAD_INPUT, "no memory to decrypt %s", from->name);
  while (started < wanted && !pthread_create(&helpers[started], NULL, help, &all)) ++started;
  /* Those that did start wait for the others: the program ends. */
  if (started < wanted)
    return trust_fail(message, TRUST_BAD_INPUT, "no threads to decrypt %s", from->name);
  sha256_init(&hash);
  sha256_update(&hash, head, (size_t)opened->start);
  int wrong = decrypt_windows(from, &all, &hash);
  all.stop = 1;
  pthread_barrier_wait(&all.begin);
  while (started) pthread_join(helpers[--started], NULL);
  pthread_barrier_destroy(&all.begin);
  pthread_barrier_destroy(&all.end);
  free(all.window);
  if (wrong) return damaged(from, message);
  return is_expected(from, &hash) ? TRUST_OK : refuse(from, message);
}

/* The header of an encrypted file, with the key of this machine. */
static int open_encrypted(const source* from, uint8_t head[AGE_HEADER_BYTES], age_file* opened,
                          trust_message* message) {
  static identity_list identities;
  char names[AGE_TEXT_BYTES];
  size_t part = from->bytes < AGE_HEADER_BYTES ? (size_t)from->bytes : AGE_HEADER_BYTES;
  int code = identity_read(&identities, message);
  if (code) return code;
  if (trust_read(from->file, head, part)) return damaged(from, message);
  code = age_open(head, part, from->bytes, identities.keys, identities.count, opened);
  age_recipient_text(&identities.keys[0], names);
  crypto_wipe(&identities, sizeof identities);
  if (code == AGE_NOT_FOR_US)
    return trust_fail(message, TRUST_BAD_INPUT,
                      "bundle %s, %s: it is not encrypted for %s; have it compiled with "
                      "--encrypt-for that",
                      from->bundle, from->name, names);
  if (code) return damaged(from, message);
  if (lseek(from->file, (off_t)opened->start, SEEK_SET) < 0) return damaged(from, message);
  return TRUST_OK;
}

/* Bring a library to memory; its path is /proc/self/fd/N. */
static int load(const source* from, int encrypted, char library[TRUST_PATH_BYTES],
                trust_message* message) {
  static uint8_t head[AGE_HEADER_BYTES];
  age_file opened = {.bytes = from->bytes};
  uint8_t* memory;
  if (from->expected && from->expected->bytes != from->bytes) return refuse(from, message);
  int code = encrypted ? open_encrypted(from, head, &opened, message) : TRUST_OK;
  if (code) return code;
  int file = new_memory_file(opened.bytes, &memory);
  if (file < 0)
    return trust_fail(message, TRUST_BAD_INPUT, "no memory to load %s", from->name);
  code = encrypted ? decrypt(from, &opened, head, memory, message)
                   : copy(from, memory, message);
  if (seal(file, memory, opened.bytes, library) && !code)
    code = trust_fail(message, TRUST_BAD_INPUT, "cannot seal %s in memory", from->name);
  crypto_wipe(&opened, sizeof opened);
  if (code) close(file);
  return code;
}

static int load_named(const char* bundle, const char* name, const signed_file* expected,
                      char library[TRUST_PATH_BYTES], trust_message* message) {
  char path[TRUST_PATH_BYTES];
  source from = {bundle, name, -1, 0, expected};
  if (!trust_join(bundle, name, path)) from.file = trust_open_file(path, &from.bytes);
  if (from.file < 0)
    return trust_fail(message, TRUST_BAD_INPUT, "cannot read %s of bundle %s", name, bundle);
  int code = load(&from, !strcmp(name, ENCRYPTED), library, message);
  close(from.file);
  return code;
}

static int is_there(const char* bundle, const char* name) {
  char path[TRUST_PATH_BYTES];
  struct stat found;
  return !trust_join(bundle, name, path) && !stat(path, &found) && S_ISREG(found.st_mode);
}

int trust_open_library(const char* bundle, char library[TRUST_PATH_BYTES],
                       trust_message* message) {
  static policy rules;
  signature signed_by;
  int code = policy_read(&rules, message);
  if (code || (code = signature_read(bundle, &signed_by, message))) return code;
  code = policy_check(&rules, bundle, &signed_by, message);
  /* What a policy asks for, and what is encrypted, is loaded from memory. */
  const char* name = is_there(bundle, LIBRARY) ? LIBRARY : ENCRYPTED;
  const signed_file* expected = *rules.path ? signature_find(&signed_by, name) : NULL;
  if (!code && signed_by.text)
    code = signature_compare(bundle, &signed_by, expected ? name : NULL, message);
  if (!code && (expected || !strcmp(name, ENCRYPTED)))
    code = load_named(bundle, name, expected, library, message);
  else if (!code && trust_join(bundle, name, library))
    code = trust_fail(message, TRUST_BAD_INPUT, "the path of the bundle is too long");
  if (signed_by.text) signature_free(&signed_by);
  return code;
}
