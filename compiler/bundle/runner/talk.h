/* Generate text by the language model of the bundle. */
#ifndef EDGEC_TALK_H
#define EDGEC_TALK_H

#include "edgec.h"

/* Whether arguments ask for text: --prompt, --prompt-file or --chat is among them. */
int asks_for_text(int count, char** arguments);

/* Do what they ask for; the exit code. `tokenizer` is the path of tokenizer.bin, `began_ms` when the
 * process began. */
int talk(const edgec_model* code, const char* tokenizer, double began_ms, int count,
         char** arguments);

extern const char talk_usage[];

#endif
