/* The secret keys of this machine, from where the variable EDGEC_IDENTITY says: see
 * compiler/trust/identities.py. */
#ifndef EDGEC_IDENTITY_H
#define EDGEC_IDENTITY_H

#include "age.h"
#include "files.h"

enum { IDENTITIES = 16, IDENTITY_BYTES = 1 << 16 };

typedef struct {
  age_identity keys[IDENTITIES];
  size_t count;
} identity_list;

/* Read the lines of a text, which are identities or comments. */
int identity_parse(const char* text, const char* source, identity_list* result,
                   trust_message* message);

int identity_read(identity_list* result, trust_message* message);

#endif
