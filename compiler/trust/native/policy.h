/* The policy of a machine: whose bundles run on it. The file is told in compiler/trust/policy.py. */
#ifndef EDGEC_POLICY_H
#define EDGEC_POLICY_H

#include "signature.h"

enum { POLICY_BYTES = 1 << 16, POLICY_KEYS = 256, POLICY_NAME_BYTES = 64 };

typedef struct {
  char name[POLICY_NAME_BYTES + 1];
  uint8_t key[32];
  int revoked;
} policy_key;

typedef struct {
  char path[TRUST_PATH_BYTES]; /* empty if this machine has no policy */
  int require_signature;
  policy_key keys[POLICY_KEYS];
  size_t key_count;
} policy;

/* Read the text of a policy, which is changed; a zero byte is behind it. */
int policy_parse(char* text, size_t bytes, const char* path, policy* result,
                 trust_message* message);

/* Read the policy of this machine, if it has one. */
int policy_read(policy* result, trust_message* message);

/* Refuse a bundle that may not run here. */
int policy_check(const policy* rules, const char* bundle, const signature* signed_by,
                 trust_message* message);

#endif
