#define _GNU_SOURCE
#include "policy.h"

#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SYSTEM_POLICY "/etc/edgec/trust.toml"

enum table { TOP, TRUSTED, REVOKED };

static char* skip_space(char* text) {
  while (*text == ' ' || *text == '\t') ++text;
  return text;
}

/* Nothing but space and a comment. */
static int is_end(char* text) {
  text = skip_space(text);
  return !*text || *text == '#';
}

static int is_name_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-';
}

/* The text behind "NAME =", and NAME made a string; NULL if there is none. */
static char* read_name(char* line) {
  char* end = line;
  while (is_name_byte(*end)) ++end;
  char* next = skip_space(end);
  if (end == line || end - line > POLICY_NAME_BYTES || *next != '=') return NULL;
  next = skip_space(next + 1);
  *end = 0;
  return next;
}

static int read_key(policy* result, const char* name, char* value, int revoked) {
  static const char start[] = "\"ed25519:";
  if (result->key_count == POLICY_KEYS || strncmp(value, start, sizeof start - 1)) return -1;
  policy_key* known = &result->keys[result->key_count];
  value += sizeof start - 1;
  if (trust_from_hex(value, known->key, 32) || value[64] != '"' || !is_end(value + 65)) return -1;
  for (size_t i = 0; i < result->key_count; ++i)
    if (result->keys[i].revoked == revoked && !strcmp(result->keys[i].name, name)) return -1;
  strcpy(known->name, name);
  known->revoked = revoked;
  ++result->key_count;
  return 0;
}

static int read_line(policy* result, char* line, enum table* table, int seen[3]) {
  line = skip_space(line);
  if (is_end(line)) return 0;
  if (*line == '[') {
    static const char* const titles[] = {"", "[trusted]", "[revoked]"};
    for (int i = TRUSTED; i <= REVOKED; ++i)
      if (!strncmp(line, titles[i], 9) && is_end(line + 9)) {
        *table = (enum table)i;
        return seen[i]++ ? -1 : 0;
      }
    return -1;
  }
  char* value = read_name(line);
  if (!value) return -1;
  if (*table != TOP) return read_key(result, line, value, *table == REVOKED);
  if (strcmp(line, "require_signature") || seen[TOP]++) return -1;
  result->require_signature = strncmp(value, "false", 5);
  if (result->require_signature && strncmp(value, "true", 4)) return -1;
  return is_end(value + (result->require_signature ? 4 : 5)) ? 0 : -1;
}

int policy_parse(char* text, size_t bytes, const char* path, policy* result,
                 trust_message* message) {
  memset(result, 0, sizeof *result);
  result->require_signature = 1;
  snprintf(result->path, sizeof result->path, "%s", path);
  enum table table = TOP;
  int seen[3] = {0, 0, 0}, number = 0, wrong = strlen(text) != bytes;
  for (char* line = text; !wrong && line; ) {
    char* end = strchr(line, '\n');
    if (end) *end = 0;
    ++number;
    wrong = read_line(result, line, &table, seen);
    line = end ? end + 1 : NULL;
  }
  if (!wrong) return TRUST_OK;
  return trust_fail(message, TRUST_REFUSED,
                    "trust policy %s, line %d: expected require_signature = true or false, "
                    "[trusted], [revoked], or NAME = \"ed25519:DIGITS\"; repair it",
                    path, number);
}

static int exists(const char* path) {
  struct stat status;
  return !lstat(path, &status);
}

/* As platformdirs finds it in Python. */
static int user_policy(char path[TRUST_PATH_BYTES]) {
  const char* config = getenv("XDG_CONFIG_HOME");
  if (config && *config) return trust_join(config, "edgec/trust.toml", path);
  const char* home = getenv("HOME");
  if (!home) {
    struct passwd* user = getpwuid(getuid());
    home = user ? user->pw_dir : NULL;
  }
  return home ? trust_join(home, ".config/edgec/trust.toml", path) : -1;
}

int policy_read(policy* result, trust_message* message) {
  char path[TRUST_PATH_BYTES];
  size_t bytes;
  memset(result, 0, sizeof *result);
  const char* given = getenv("EDGEC_TRUST");
  if (given && *given) {
    if (trust_join("", given, path))
      return trust_fail(message, TRUST_REFUSED, "the path in EDGEC_TRUST is too long");
  } else if (user_policy(path) || !exists(path)) {
    strcpy(path, SYSTEM_POLICY);
    if (!exists(path)) return TRUST_OK;
  }
  char* text = trust_read_file(path, POLICY_BYTES, &bytes);
  if (!text)
    return trust_fail(message, TRUST_REFUSED, "trust policy %s cannot be read; repair it", path);
  int code = policy_parse(text, bytes, path, result, message);
  free(text);
  return code;
}

/* What the policy says of a key; revoked goes before trusted. */
static const policy_key* find_key(const policy* rules, const uint8_t key[32]) {
  const policy_key* found = NULL;
  for (size_t i = 0; i < rules->key_count; ++i)
    if (!memcmp(rules->keys[i].key, key, 32) && (!found || rules->keys[i].revoked))
      found = &rules->keys[i];
  return found;
}

int policy_check(const policy* rules, const char* bundle, const signature* signed_by,
                 trust_message* message) {
  char text[73];
  const policy_key* revoked = NULL;
  if (!*rules->path) return TRUST_OK;
  if (!signed_by->text) {
    if (!rules->require_signature) return TRUST_OK;
    return trust_fail(message, TRUST_REFUSED,
                      "bundle %s is not signed, and %s requires a signature; get a signed one, or "
                      "sign it: edgec sign %s --key NAME",
                      bundle, rules->path, bundle);
  }
  for (size_t i = 0; i < signed_by->key_count; ++i) {
    const policy_key* known = find_key(rules, signed_by->keys[i]);
    if (known && !known->revoked) return TRUST_OK;
    if (known && !revoked) revoked = known;
  }
  signature_key_text(revoked ? revoked->key : signed_by->keys[0], text);
  if (revoked)
    return trust_fail(message, TRUST_REFUSED,
                      "bundle %s is signed by key %s (%s), which %s revokes; get one that is "
                      "signed by another key",
                      bundle, revoked->name, text, rules->path);
  return trust_fail(message, TRUST_REFUSED,
                    "bundle %s is signed by key %s, which %s does not trust; if you know whose "
                    "that is, add it there below [trusted]: NAME = \"%s\"",
                    bundle, text, rules->path, text);
}
