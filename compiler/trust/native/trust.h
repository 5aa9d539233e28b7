/* Who made a bundle, and whether it may run here: asked before its library is loaded. */
#ifndef EDGEC_TRUST_H
#define EDGEC_TRUST_H

#include "files.h"

/* Check a bundle by its signature and by the policy of this machine, and give the path to load its
 * library from. Of a bundle that a policy trusts, or that is encrypted, that is in memory, where
 * nobody can change it.
 *
 * bundle:   its folder
 * library:  the path to load
 *
 * Gives TRUST_OK, or a code to end with and why. */
int trust_open_library(const char* bundle, char library[TRUST_PATH_BYTES], trust_message* message);

#endif
