#define _GNU_SOURCE
#include "identity.h"

#include <errno.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "monocypher.h"

int identity_parse(const char* text, const char* source, identity_list* result,
                   trust_message* message) {
  result->count = 0;
  for (const char *line = text, *end; *line; line = *end ? end + 1 : end) {
    end = line + strcspn(line, "\n");
    size_t letters = (size_t)(end - line);
    while (letters && (line[letters - 1] == ' ' || line[letters - 1] == '\r')) --letters;
    if (!letters || *line == '#') continue;
    if (result->count == IDENTITIES ||
        age_read_identity(line, letters, &result->keys[result->count]))
      return trust_fail(message, TRUST_BAD_INPUT,
                        "EDGEC_IDENTITY=%s: a line is no identity; expected AGE-SECRET-KEY-1…",
                        source);
    ++result->count;
  }
  if (result->count) return TRUST_OK;
  return trust_fail(message, TRUST_BAD_INPUT, "EDGEC_IDENTITY=%s holds no identity", source);
}

static int from_keyring(const char* name, char text[IDENTITY_BYTES], trust_message* message) {
  long key = syscall(SYS_request_key, "user", name, NULL, 0);
  long bytes = key < 0 ? -1 : syscall(SYS_keyctl, KEYCTL_READ, key, text, IDENTITY_BYTES - 1, 0);
  if (bytes < 0)
    return trust_fail(message, TRUST_BAD_INPUT,
                      "key %s of the kernel's keyring cannot be read: %s", name, strerror(errno));
  text[bytes < IDENTITY_BYTES ? bytes : 0] = 0;
  return TRUST_OK;
}

static int from_command(const char* words, char text[IDENTITY_BYTES], trust_message* message) {
  FILE* output = popen(words, "re");
  size_t bytes = output ? fread(text, 1, IDENTITY_BYTES - 1, output) : 0;
  text[bytes] = 0;
  if (!output || pclose(output))
    return trust_fail(message, TRUST_BAD_INPUT, "the command of EDGEC_IDENTITY gave no key: %s",
                      words);
  return TRUST_OK;
}

static int from_file(const char* path, char text[IDENTITY_BYTES], trust_message* message) {
  size_t bytes;
  char* data = trust_read_file(path, IDENTITY_BYTES - 1, &bytes);
  if (!data)
    return trust_fail(message, TRUST_BAD_INPUT, "EDGEC_IDENTITY=file:%s cannot be read: %s", path,
                      strerror(errno));
  memcpy(text, data, bytes + 1);
  crypto_wipe(data, bytes);
  free(data);
  return TRUST_OK;
}

int identity_read(identity_list* result, trust_message* message) {
  static const struct {
    const char* kind;
    int (*read)(const char*, char*, trust_message*);
  } sources[] = {{"file:", from_file}, {"keyring:", from_keyring}, {"command:", from_command}};
  static char text[IDENTITY_BYTES];
  const char* given = getenv("EDGEC_IDENTITY");
  if (!given) given = "";
  for (size_t i = 0; i < sizeof sources / sizeof *sources; ++i) {
    size_t kind = strlen(sources[i].kind);
    if (strncmp(given, sources[i].kind, kind) || !given[kind]) continue;
    int code = sources[i].read(given + kind, text, message);
    if (!code) code = identity_parse(text, given, result, message);
    crypto_wipe(text, sizeof text);
    return code;
  }
  return trust_fail(message, TRUST_BAD_INPUT,
                    "the bundle is encrypted, and EDGEC_IDENTITY is '%s'; it says where the secret "
                    "key is: file:PATH, keyring:NAME or command:WORDS",
                    given);
}
